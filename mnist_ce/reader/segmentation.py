"""Segmentation of an image into digits, as competing hypotheses of what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_ce.reader.binarize import (
    STRUCTURING_SIZE_FRACTION,
    Foreground,
    correct_illumination,
    detect_polarity,
    segment_foreground,
    to_grayscale_pca,
)
from mnist_ce.reader.components import (
    MAX_GAP_FRACTION,
    Box,
    Component,
    DigitCandidate,
    Labels,
    bounding_box,
    find_components,
    group_components,
)
from mnist_ce.reader.image_io import to_float_image
from mnist_ce.reader.mnist_format import FIELD_SIZE, FloatImage
from mnist_ce.reader.mnist_like import MAX_BACKGROUND_LEVEL, as_mnist_image
from mnist_ce.reader.ruled_lines import erase_lines
from mnist_ce.reader.text_lines import (
    WIDTH_PENALTY,
    Digit,
    Lattice,
    digit_height,
    group_lines,
    line_lattices,
    single_mark,
    without_box_sides,
    without_frames,
)

Stages: TypeAlias = dict[str, NDArray[np.generic]]
"""The image after each stage of preprocessing, by name: uint8, bool or float32 [h, w]."""

# Between pieces of a badly broken digit. As one more hypothesis it gained 0.3 % on images with
# shadows, 1.0 % on creased paper, and changed no figure of 33 other kinds (docs/log.md).
MAX_GAP_RELAXED_FRACTION = 0.25
MAX_REFINED_FRACTION = 0.6  # of the image's longer side; a larger digit needs no refinement
LIGHT_FOREGROUND_PRIOR = 0.8  # light on dark is the rarer case
MIN_RELATIVE_SCORE = 0.2  # of the best segmentation's score, to become a hypothesis
# Below this quality of the best hypothesis there may be shadows or reflections, wider than strokes
# and narrower than the usual structuring element: a finer one gives further hypotheses.
CLEAR_QUALITY = 0.75
FINE_STRUCTURING_SIZE_FRACTION = 0.12
# In an image of many digits strokes are thinner; 0.035 to 0.08 find the same ones (docs/log.md).
ROW_STRUCTURING_SIZE_FRACTION = 0.05
MIN_FINE_QUALITY = 0.6  # the inner parts of thick strokes are below it
MIN_SIZE_OF_SMALL = 400  # pixels: a digit too small for a smaller image is illegible
MAX_COUNTED = 120  # candidates; more are noise, and are not read only to be counted
MIN_SIMILAR_SCORE = 0.25  # of the best candidate's
MIN_SPLIT_ASPECT = 0.95  # width over height; a single digit is seldom wider


@dataclass
class Hypothesis:
    """One way to segment an image; both scores measure how much the ink looks like writing."""

    lines: list[list[Lattice]]  # from top to bottom; one lattice unless several digits were wanted
    segmentation_score: float = 1.0  # grows with the foreground's size: compares hypotheses
    # In [0, 1] whatever its size: low for soft edges, along the border, or beside much else.
    foreground_quality: float = 1.0
    contrast: float = 1.0  # of the ink, as a fraction of the paper's brightness
    scale: float = 1.0  # pixels of the upright image per pixel of the boxes
    all_lines: list[list[Lattice]] = field(default_factory=list)  # where there may be several
    stages: Stages = field(default_factory=dict, repr=False)

    @property
    def digits(self) -> list[Digit]:
        """Each lattice as one digit."""
        return [lattice.whole for line in self.lines for lattice in line]


@dataclass(frozen=True)
class Segmentation:
    """The foreground of an image for one polarity, and its candidates for digits, best first."""

    gray: FloatImage
    foreground: Foreground
    labels: Labels
    components: list[Component]
    candidates: list[DigitCandidate]
    max_gap: float
    origin: tuple[int, int] = (0, 0)  # row and column of this part in the image

    @property
    def written(self) -> list[Component]:
        """The components of all candidates."""
        return [c for candidate in self.candidates for c in candidate.components]

    def explained(self, candidates: list[DigitCandidate]) -> float:
        """Return the share that candidates have of the score of all components."""
        return sum(c.score for c in candidates) / sum(c.score for c in self.components)

    @property
    def score(self) -> float:
        """How much the best candidate looks like writing and explains of what looks like it."""
        prior = 1 if self.foreground.is_dark else LIGHT_FOREGROUND_PRIOR
        return self.candidates[0].score * self.explained(self.candidates[:1]) * prior


def hypotheses(
    image: Image.Image, *, multi: bool = False, stages: Stages | None = None
) -> list[Hypothesis]:
    """Return what an image may show, the best segmentation first.

    There are up to four: dark foreground on light or light on dark, where either is possible, and
    for each a digit of near components or of more distant ones; with `multi` up to two, of rows of
    digits; and as many again, of a finer structuring element, where the quality of the first is
    low. The network decides among them. If `stages` is given, it takes the stage before any
    foreground is found, and each hypothesis keeps all of its stages.
    """
    width = image.info.get("full_size", image.size)[0]
    pixels = as_mnist_image(image)
    if pixels is not None:
        box = bounding_box(pixels > MAX_BACKGROUND_LEVEL)
        made: Stages = {} if stages is None else {"what the network reads": pixels}
        return [
            Hypothesis([[Lattice.of(Digit(pixels, box))]], scale=width / FIELD_SIZE, stages=made)
        ]
    gray = to_grayscale_pca(to_float_image(image))
    if stages is not None:
        stages["grey"] = gray
    even = correct_illumination(gray)
    polarity = detect_polarity(even)
    result = segment_as(even, polarity, STRUCTURING_SIZE_FRACTION, multi, stages)
    if result and result[0].foreground_quality < CLEAR_QUALITY:
        needed = 0.0 if multi else max(result[0].foreground_quality, MIN_FINE_QUALITY)
        size = ROW_STRUCTURING_SIZE_FRACTION if multi else FINE_STRUCTURING_SIZE_FRACTION
        finer = segment_as(even, polarity, size, multi, stages)
        result += [hypothesis for hypothesis in finer if hypothesis.foreground_quality > needed]
    return [replace(hypothesis, scale=width / gray.shape[1]) for hypothesis in result]


def segment_as(
    even: FloatImage,
    polarity: bool | None,
    structuring_size: float,
    multi: bool,
    stages: Stages | None,
) -> list[Hypothesis]:
    """Return the hypotheses about an evenly lit image, of either polarity where that is None."""
    segmentations = []
    for is_dark in (True, False) if polarity is None else (polarity,):
        if (found := segment(even, is_dark, structuring_size)) is not None:
            height = digit_height(without_frames(found.written)) if multi else None
            unruled = erase_lines(even, found.foreground, height)
            without_lines = None if unruled is None else segment(unruled, is_dark, structuring_size)
            segmentations.append(without_lines or found)
    if not segmentations and (found := find_small(even)) is not None:
        segmentations = [found]
    segmentations.sort(key=lambda found: -found.score)
    result: list[Hypothesis] = []
    for found in segmentations:
        # Among many digits a large shadow has the best score.
        if not multi and found.score < MIN_RELATIVE_SCORE * segmentations[0].score:
            break
        result.append(extract_digits(found, multi, stages))
        if not multi and (merged := merge_distant(found)) is not None:
            result.append(extract_digits(merged, multi, stages, result[-1].all_lines))
    return result


def segment(
    gray: FloatImage,
    is_dark: bool,
    structuring_size: float = STRUCTURING_SIZE_FRACTION,
    max_gap: float = MAX_GAP_FRACTION,
) -> Segmentation | None:
    """Segment the foreground of one polarity into candidates; None where there is none."""
    foreground = segment_foreground(gray, is_dark, structuring_size)
    if foreground is None:
        return None
    labels, components = find_components(foreground)
    candidates = group_components(components, labels, max_gap)
    found = Segmentation(gray, foreground, labels, components, candidates, max_gap)
    return found if candidates else None


def find_small(gray: FloatImage) -> Segmentation | None:
    """Segment the surroundings of the strongest spot: a digit too small for the whole's noise."""
    if max(gray.shape) < MIN_SIZE_OF_SMALL:
        return None
    deviation = ndimage.uniform_filter(gray - np.median(gray), 5)
    row, column = np.unravel_index(int(np.abs(deviation).argmax()), gray.shape)
    place = Box(int(row), int(column), int(row) + 1, int(column) + 1)
    where = place.slices(max(gray.shape) // 16)
    found = segment(gray[where], bool(deviation[row, column] < 0))
    return found and replace(found, origin=(where[0].start, where[1].start))


def merge_distant(found: Segmentation) -> Segmentation | None:
    """Return the segmentation whose best candidate takes in distant components, if any."""
    candidates = group_components(found.components, found.labels, MAX_GAP_RELAXED_FRACTION)
    if len(candidates[0].components) == len(found.candidates[0].components):
        return None
    return replace(found, candidates=candidates, max_gap=MAX_GAP_RELAXED_FRACTION)


def refine(found: Segmentation, candidate: DigitCandidate) -> Segmentation:
    """Segment the surroundings of one digit again, with a structuring element for its strokes.

    Neither the rest of the image nor shadows wider than a few strokes then set the threshold.
    """
    unrefined = replace(found, candidates=[candidate])
    if candidate.box.size > MAX_REFINED_FRACTION * max(found.gray.shape):
        return unrefined
    where = candidate.box.slices(round(0.3 * candidate.box.size) + 4)
    part = found.gray[where]
    stroke_width = max(c.stroke_width for c in candidate.components)
    size = min(STRUCTURING_SIZE_FRACTION, (4 * stroke_width + 5) / max(part.shape))
    refined = segment(part, found.foreground.is_dark, size, found.max_gap)
    # A much smaller digit would be a piece of the first.
    if refined is None or refined.candidates[0].box.size < 0.6 * candidate.box.size:
        return unrefined
    down, right = found.origin
    return replace(refined, origin=(down + where[0].start, right + where[1].start))


def extract_digits(
    found: Segmentation,
    multi: bool,
    stages: Stages | None = None,
    row: list[list[Lattice]] | None = None,
) -> Hypothesis:
    """Cut the digits out of a segmentation: the best candidate, or all lines with `multi`.

    `row` are the digits of all lines, where they are known.
    """
    best, others = found.candidates[0], similar_candidates(found.candidates)
    lines = row or []
    if row is None and (multi or may_be_several(found.candidates)):
        lines = find_digits(found, multi)
    # Near digits share a lattice.
    several = bool(lines) and (bool(row or others) or sum(map(len, lines)) > 1)
    refined = None if multi and several else refine(found, best)
    if refined is None:
        chosen = lines
        quality = best.stroke_score * found.explained([best, *others])
    else:
        chosen = [[single_digit(refined)]]
        on_line = [c for c in others if _is_beside(c, best)]
        quality = best.stroke_score * found.explained([best, *on_line])
    contrast, all_lines = found.foreground.contrast, lines if several and not multi else []
    hypothesis = Hypothesis(chosen, found.score, quality, contrast, all_lines=all_lines)
    if stages is not None:
        ink, mask = found.foreground.intensity.clip(0, 1), found.foreground.mask
        hypothesis.stages = stages | {
            "evenly lit": found.gray / 1.3, "ink": ink, "ink or paper": mask,
        }  # fmt: skip
        if refined is not None:
            hypothesis.stages["the digit, closer"] = refined.foreground.intensity.clip(0, 1)
    return hypothesis


def similar_candidates(candidates: list[DigitCandidate]) -> list[DigitCandidate]:
    """Return the candidates that look as much like a digit as the best, and are as large."""
    best, size = candidates[0], max(c.box.size for c in candidates[0].components)
    return [
        c
        for c in candidates[1:]
        if 0.5 * size < c.box.size < 2 * size and c.score > MIN_SIMILAR_SCORE * best.score
    ]


def may_be_several(candidates: list[DigitCandidate]) -> bool:
    """Whether there are several candidates, or a digit may have been merged with one above it."""
    sizes = sorted(c.box.size for c in candidates[0].components)
    merged = len(sizes) > 1 and sizes[-2] > 0.5 * sizes[-1]
    return len(candidates) <= MAX_COUNTED and (merged or bool(similar_candidates(candidates)))


def _is_beside(candidate: DigitCandidate, best: DigitCandidate) -> bool:
    offset = candidate.box.top + candidate.box.bottom - best.box.top - best.box.bottom
    return abs(offset) / 2 < 0.6 * best.box.size


def find_digits(found: Segmentation, with_cuts: bool) -> list[list[Lattice]]:
    """Return the lattices of all text lines of a segmentation; without cuts they only count."""
    components = found.written
    height = digit_height(components)
    lines = filter(None, map(without_box_sides, group_lines(components, height)))
    digits = [
        line_lattices(found.foreground, found.labels, line, height, with_cuts=with_cuts)
        for line in lines
    ]
    return [[lattice.moved(*found.origin) for lattice in line] for line in digits]


def single_digit(found: Segmentation) -> Lattice:
    """Return the best candidate as one digit, with cuts where it may be several that touch."""
    candidate, origin = found.candidates[0], found.origin
    box = candidate.box
    mark = single_mark(box)
    is_wide = box.width >= MIN_SPLIT_ASPECT * box.height and mark is None
    height = box.height if is_wide else 2.0 * box.size
    components = sorted(candidate.components, key=lambda c: c.box.left + c.box.right)
    (lattice,) = line_lattices(found.foreground, found.labels, components, height, np.inf)
    too_wide = max(0.0, box.width / max(1, box.height) - 1.0)
    whole = replace(lattice.whole, penalty=WIDTH_PENALTY * too_wide, mark=mark)
    lattice.digits[0, lattice.num_pieces] = whole
    return lattice.moved(*origin)
