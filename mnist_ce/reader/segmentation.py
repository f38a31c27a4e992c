"""Segmentation of an image into digits, as competing hypotheses of what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_ce.reader import binarize, ruled_lines, text_lines
from mnist_ce.reader.binarize import STRUCTURING_SIZE_FRACTION, Foreground
from mnist_ce.reader.components import (
    MAX_GAP_FRACTION,
    Component,
    DigitCandidate,
    find_components,
    glyph_of,
    group_components,
)
from mnist_ce.reader.geometry import FloatImage, Labels, bounding_box
from mnist_ce.reader.mnist_format import FIELD_SIZE, fit_glyph, load_detector
from mnist_ce.reader.page import View
from mnist_ce.reader.pixels import MAX_BACKGROUND_LEVEL, as_mnist_image, to_float_image
from mnist_ce.reader.text_lines import CrowdedError, Digit, Lattice, Work

Stages: TypeAlias = dict[str, NDArray[np.generic]]
"""The image after each stage of preprocessing, by name: uint8, bool or float32 [h, w]."""

# Between pieces of a badly broken digit. As one more hypothesis it gained 0.3 % on images with
# shadows, 1.0 % on creased paper, and changed no figure of 33 other kinds (docs/log.md).
MAX_GAP_RELAXED_FRACTION = 0.25
LIGHT_FOREGROUND_PRIOR = 0.8  # light on dark is the rarer case
MIN_RELATIVE_SCORE = 0.2  # of the best segmentation's score, to become a hypothesis
# Below this quality of the best hypothesis there may be shadows or reflections, wider than strokes
# and narrower than the usual structuring element: a finer one gives further hypotheses. Of 200
# images under the shadow of a hand 4 instead of 30 were wrong, of 200 lit boards 6 instead of 11.
CLEAR_QUALITY = 0.75
FINE_STRUCTURING_SIZE_FRACTION = 0.12
# In an image of many digits strokes are thinner: 0.035, 0.05 and 0.08 find 97.6, 97.8 and 96.9 %
# of the digits of shaded sheets; a sheet without shadow takes 1.5 times as long (docs/log.md).
LINES_STRUCTURING_SIZE_FRACTION = 0.05
# The inner parts of thick strokes are below it: with them UCI's enlarged digits lost 12 %.
MIN_FINE_QUALITY = 0.6
CROWDED = "more ink than a page of digits has: crop the image to them"
MAX_COUNTED = 120  # candidates; more are noise, and are not read only to be counted
MIN_SIMILAR_SCORE = 0.25  # of the best candidate's
MIN_SIMILAR_SIZE = 0.5  # of the best candidate's largest piece; it is at most twice as large
MAX_BESIDE_OFFSET = 0.6  # of a candidate on the best one's line, of the best one's size
MIN_SINGLE_DASH_ASPECT = 4.0  # flatter than among digits, to which the only ink cannot be compared
# The detector's mean score of MNIST's digits is 5.2, and -3.2, 0.9 and -3.0 when they are turned.
# Of three digits it is highest upright in 99.7 %, and 1.0 lower in 0.03 % (docs/log.md).
MIN_TURNED_SHAPE = 0.4  # a narrower one is a 1 when upright, a dash when turned
MIN_TURNED_DIGITS, MAX_TURNED_DIGITS, MAX_TURN_SCORE, MIN_TURN_GAIN = 3, 30, 6.0, 1.0
MIN_SPLIT_ASPECT = 0.95  # width over height; a single digit is seldom wider


@dataclass
class Hypothesis:
    """One way to segment an image; both scores measure how much the ink looks like writing."""

    lines: list[list[Lattice]]  # from top to bottom; one lattice unless several digits were wanted
    segmentation_score: float = 1.0  # grows with the foreground's size: compares hypotheses
    # In [0, 1] whatever its size: low for soft edges, along the border, or beside much else.
    foreground_quality: float = 1.0
    contrast: float = 1.0  # of the ink, as a fraction of the paper's brightness
    # Pixels of the boxes → of the upright image, [3, 3], which was turned by so many degrees.
    to_image: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    rotation: int = 0
    is_crowded: bool = False  # with more ink than is read
    # All digits, to be counted, where there may be several beside the one that is wanted.
    all_lines: list[list[Lattice]] = field(default_factory=list)
    stages: Stages = field(default_factory=dict, repr=False)

    @property
    def may_be_several(self) -> bool:
        return bool(self.all_lines) or self.lines[0][0].num_pieces > 1

    @property
    def digits(self) -> list[Digit]:
        return [lattice.whole for line in self.lines for lattice in line]


@dataclass(frozen=True)
class Segmentation:
    """The foreground of an image for one polarity, and its candidates for digits, best first."""

    gray: FloatImage
    foreground: Foreground
    labels: Labels
    components: list[Component]
    candidates: list[DigitCandidate]

    @property
    def best(self) -> DigitCandidate:
        return self.candidates[0]

    @property
    def others(self) -> list[DigitCandidate]:
        """The candidates that look as much like a digit as the best, and are as large."""
        size = max(c.box.size for c in self.best.components)
        return [
            c
            for c in self.candidates[1:]
            if MIN_SIMILAR_SIZE * size < c.box.size < size / MIN_SIMILAR_SIZE
            and c.score > MIN_SIMILAR_SCORE * self.best.score
        ]

    def is_beside(self, other: DigitCandidate) -> bool:
        """Whether a candidate is in the best one's line, which is no clutter."""
        best = self.best.box
        offset = other.box.top + other.box.bottom - best.top - best.bottom
        return abs(offset) / 2 < MAX_BESIDE_OFFSET * best.size

    @property
    def components_of_candidates(self) -> list[Component]:
        return [c for candidate in self.candidates for c in candidate.components]

    def score_fraction(self, candidates: list[DigitCandidate]) -> float:
        return sum(c.score for c in candidates) / sum(c.score for c in self.components)

    @property
    def score(self) -> float:
        """How much the best candidate looks like writing, and how little else does."""
        prior = 1 if self.foreground.is_dark else LIGHT_FOREGROUND_PRIOR
        return self.best.score * self.score_fraction([self.best]) * prior


def hypotheses(
    image: Image.Image, *, multi: bool = False, stages: Stages | None = None
) -> list[Hypothesis]:
    """Return what an image may show, the best segmentation first.

    They differ in polarity, where both are possible, in the gap within a digit (not with `multi`),
    and in the structuring element, where the quality of the first is low; the network decides. If
    `stages` is given, it takes the first stage, and each hypothesis keeps all of its stages.
    """
    view, pixels = View.of(image), as_mnist_image(image)
    if pixels is not None:
        box = bounding_box(pixels > MAX_BACKGROUND_LEVEL)
        made: Stages = {} if stages is None else {"what the network reads": pixels}
        to_image = view.to_image / [FIELD_SIZE, FIELD_SIZE, 1]
        return [Hypothesis([[Lattice.of(Digit(pixels, box))]], to_image=to_image, stages=made)]
    work, result = Work(), list[Hypothesis]()
    for part in filter(None, (view.page(), view)):
        result = result or read_view(part, multi, stages, work)
    return result


def read_view(view: View, multi: bool, stages: Stages | None, work: Work) -> list[Hypothesis]:
    gray = binarize.to_grayscale_pca(to_float_image(view.image))
    flattened = binarize.correct_illumination(gray)
    polarity = binarize.detect_polarity(flattened)
    segmentations = segment_as(flattened, polarity, STRUCTURING_SIZE_FRACTION)
    if multi and segmentations and not view.rotation and (turn := find_turn(segmentations[0])):
        return read_view(view.turned(turn), multi, stages, work)
    if stages is not None:
        stages["grey"] = gray
    result = read_all(segmentations, multi, stages, work)
    if result and result[0].foreground_quality < CLEAR_QUALITY:
        min_quality = 0.0 if multi else max(result[0].foreground_quality, MIN_FINE_QUALITY)
        size = LINES_STRUCTURING_SIZE_FRACTION if multi else FINE_STRUCTURING_SIZE_FRACTION
        finer = read_all(segment_as(flattened, polarity, size), multi, stages, work)
        result += [found for found in finer if found.foreground_quality > min_quality]
    to_image = view.to_image / [gray.shape[1], gray.shape[1], 1]
    return [replace(h, to_image=to_image, rotation=view.rotation) for h in result]


def find_turn(segmentation: Segmentation) -> int:
    """Return by how many quarters counterclockwise its digits look upright, 0 where unclear."""
    components = segmentation.components_of_candidates
    size = np.median([c.box.size for c in components[:MAX_TURNED_DIGITS]])
    digits = [
        np.where(segmentation.labels[where] == c.label, segmentation.foreground.intensity[where], 0)
        for c in components
        if 0.6 * size < c.box.size < 1.6 * size
        and (where := c.box.slices())
        and min(c.box.height, c.box.width) > MIN_TURNED_SHAPE * c.box.size
    ]
    if len(digits) < MIN_TURNED_DIGITS:
        return 0
    pixels = np.stack([fit_glyph(digit.clip(0, 1)) for digit in digits[:MAX_TURNED_DIGITS]])
    turned = np.concatenate([np.rot90(pixels, turn, (1, 2)) for turn in range(4)])
    scores = load_detector().scores(turned).clip(-MAX_TURN_SCORE, MAX_TURN_SCORE)
    means = scores.reshape(4, -1).mean(axis=1)
    best = int(means.argmax())
    return best if means[best] > means[0] + MIN_TURN_GAIN else 0


def segment_as(
    flattened: FloatImage, polarity: bool | None, structuring_size: float
) -> list[Segmentation]:
    """Segment an evenly lit image, of either polarity where that is None; the best comes first."""
    segmentations = []
    for is_dark in (True, False) if polarity is None else (polarity,):
        if (segmentation := segment(flattened, is_dark, structuring_size)) is not None:
            components = segmentation.components_of_candidates
            height = text_lines.digit_height(components)
            unruled = ruled_lines.erase_lines(flattened, segmentation.foreground, height)
            without_lines = None if unruled is None else segment(unruled, is_dark, structuring_size)
            segmentations.append(without_lines or segmentation)
    return sorted(segmentations, key=lambda segmentation: -segmentation.score)


def read_all(
    segmentations: list[Segmentation], multi: bool, stages: Stages | None, work: Work
) -> list[Hypothesis]:
    result: list[Hypothesis] = []
    for segmentation in segmentations:  # all, as among many digits a large shadow scores best
        if not multi and segmentation.score < MIN_RELATIVE_SCORE * segmentations[0].score:
            break
        try:
            found = read(segmentation, multi, work)
        except CrowdedError:
            found = [unread(segmentation)]
        if stages is not None:
            made = stages | {
                "evenly lit": segmentation.gray / 1.3,  # light paper is 1, and glare on it more
                "ink": segmentation.foreground.intensity.clip(0, 1),
                "ink or paper": segmentation.foreground.mask,
            }
            found = [replace(hypothesis, stages=made) for hypothesis in found]
        result += found
    return result


def segment(
    gray: FloatImage,
    is_dark: bool,
    structuring_size: float = STRUCTURING_SIZE_FRACTION,
) -> Segmentation | None:
    """Segment the foreground of one polarity into candidates; None where there is none."""
    foreground = binarize.segment_foreground(gray, is_dark, structuring_size)
    if foreground is None:
        return None
    labels, components = find_components(foreground)
    candidates = group_components(components, MAX_GAP_FRACTION)
    if not candidates:
        return None
    return Segmentation(gray, foreground, labels, components, candidates)


def merge_distant(segmentation: Segmentation) -> Segmentation | None:
    """Return the segmentation whose best candidate takes in distant components, if any."""
    candidates = group_components(segmentation.components, MAX_GAP_RELAXED_FRACTION)
    if len(candidates[0].components) == len(segmentation.best.components):
        return None
    return replace(segmentation, candidates=candidates)


def unread(segmentation: Segmentation) -> Hypothesis:
    """Return the hypothesis of more ink than is read: its digit is the best candidate, uncut."""
    best = segmentation.best
    wanted = [component.label for component in best.components]
    pixels = glyph_of(segmentation.foreground.intensity, segmentation.labels, wanted, best.box)
    whole = Lattice.of(Digit(pixels, best.box))
    return replace(_hypothesis(segmentation, [[whole]], [best]), is_crowded=True)


def read(segmentation: Segmentation, multi: bool, work: Work) -> list[Hypothesis]:
    """Return the hypotheses of a segmentation: of all digits in lines, or of the best candidate.

    Raises:
        CrowdedError: If there is more ink than is read.
    """
    if multi and (lines := find_digits(segmentation, work, with_cuts=True)):
        return [_hypothesis(segmentation, lines, [segmentation.best, *segmentation.others])]
    all_lines = [] if multi else count_digits(segmentation, work)
    result = []
    for part in filter(None, (segmentation, None if multi else merge_distant(segmentation))):
        lines = [[single_digit(part, work)]]
        hypothesis = _hypothesis(part, lines, [part.best, *filter(part.is_beside, part.others)])
        result.append(replace(hypothesis, all_lines=all_lines))
    return result


def _hypothesis(
    segmentation: Segmentation, lines: list[list[Lattice]], candidates: list[DigitCandidate]
) -> Hypothesis:
    quality = segmentation.best.stroke_score * segmentation.score_fraction(candidates)
    return Hypothesis(lines, segmentation.score, quality, segmentation.foreground.contrast)


def count_digits(segmentation: Segmentation, work: Work) -> list[list[Lattice]]:
    """Return the digits of all lines, uncut, where there may be several; else none."""
    sizes = sorted(c.box.size for c in segmentation.best.components)
    is_merged = len(sizes) > 1 and sizes[-2] > MIN_SIMILAR_SIZE * sizes[-1]  # with one above it
    is_crowded = len(segmentation.candidates) > MAX_COUNTED
    may_be_several = not is_crowded and (is_merged or segmentation.others)
    return find_digits(segmentation, work, with_cuts=False) if may_be_several else []


def find_digits(segmentation: Segmentation, work: Work, with_cuts: bool) -> list[list[Lattice]]:
    """Return the lattices of all text lines, if they are several; without cuts they only count."""
    foreground, labels = segmentation.foreground, segmentation.labels
    components = segmentation.components_of_candidates
    height = text_lines.digit_height(components)
    lines = [
        text_lines.line_lattices(foreground, labels, line, height, work, with_cuts=with_cuts)
        for line in text_lines.group_lines(components, height)
    ]
    if not segmentation.others and sum(map(len, lines)) < 2:  # near digits share a lattice
        return []
    return lines


def single_digit(segmentation: Segmentation, work: Work) -> Lattice:
    """Return the best candidate as one digit, with cuts where it may be several that touch."""
    box = segmentation.best.box
    mark = "a dash" if box.width > MIN_SINGLE_DASH_ASPECT * box.height else None
    is_wide = box.width >= MIN_SPLIT_ASPECT * box.height and mark is None
    # The height of its digits, if it is several; what is half as high is not cut.
    height = box.height if is_wide else 2.0 * box.size
    components = sorted(segmentation.best.components, key=lambda c: c.box.left + c.box.right)
    (lattice,) = text_lines.line_lattices(
        segmentation.foreground, segmentation.labels, components, height, work, np.inf
    )
    too_wide = max(0.0, box.width / max(1, box.height) - 1.0)
    mark = mark or ("a plus sign" if text_lines.is_plus(lattice.whole.pixels) else None)
    whole = replace(lattice.whole, penalty=text_lines.WIDTH_PENALTY * too_wide, mark=mark)
    lattice.digits[0, lattice.num_pieces] = whole
    return lattice
