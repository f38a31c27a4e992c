"""Segmentation of an image into digits, as competing hypotheses of what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_ce.data.mnist_format import FIELD_SIZE, fit_glyph
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
    find_components,
    group_components,
)
from mnist_ce.reader.image_io import FloatImage, to_float_image
from mnist_ce.reader.mnist_like import as_mnist_image, normalise_stroke_width
from mnist_ce.reader.ruled_lines import erase_lines

Stages: TypeAlias = dict[str, NDArray[np.generic]]
"""The image after each stage of preprocessing, by name: uint8, bool or float32 [h, w]."""

# Between pieces of a badly broken digit. As one more hypothesis it gained 0.3 % on images with
# shadows, 1.0 % on creased paper, and changed no figure of 33 other kinds (docs/log.md).
MAX_GAP_RELAXED_FRACTION = 0.25
MAX_REFINED_FRACTION = 0.6  # of the image's longer side; a larger digit needs no refinement
LIGHT_FOREGROUND_PRIOR = 0.8  # light on dark is the rarer case
MIN_RELATIVE_SCORE = 0.2  # of the best segmentation's score, to become a hypothesis
MIN_SPLIT_ASPECT = 0.95  # width over height; a single digit is seldom wider
MIN_DIGIT_ASPECT, MAX_DIGIT_ASPECT = 0.35, 1.0  # width over height of one digit in a row
MAX_SPLIT_DIGITS = 6
WHOLE_IMAGE = Box(0, 0, FIELD_SIZE, FIELD_SIZE)


@dataclass(frozen=True)
class Digit:
    """One digit in MNIST's format, with the ways to take it for several digits that touch."""

    pixels: NDArray[np.uint8]  # [28, 28]
    box: Box = WHOLE_IMAGE  # at the working size of the image
    splits: tuple[tuple[Digit, ...], ...] = ()  # each from left to right


@dataclass
class Hypothesis:
    """One way to segment an image; both scores measure how much the ink looks like writing."""

    digits: list[Digit]  # from left to right; one unless several were wanted
    num_found: int = 1
    segmentation_score: float = 1.0  # grows with the foreground's size: compares hypotheses
    # In [0, 1] whatever its size: low for soft edges, along the border, or beside much else.
    foreground_quality: float = 1.0
    stages: Stages = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Segmentation:
    """The foreground of an image for one polarity, and its candidates for digits, best first."""

    gray: FloatImage
    foreground: Foreground
    labels: Labels
    components: list[Component]
    candidates: list[DigitCandidate]
    max_gap: float

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
    digits. The network decides among them. If `stages` is given, it takes the stage before any
    foreground is found, and each hypothesis keeps all of its stages.
    """
    pixels = as_mnist_image(image)
    if pixels is not None:
        return [Hypothesis([Digit(pixels)], stages={} if stages is None else {"glyph": pixels})]
    gray = to_grayscale_pca(to_float_image(image))
    if stages is not None:
        stages["light"] = gray
    even = correct_illumination(gray)
    polarity = detect_polarity(even)
    segmentations = []
    for is_dark in (True, False) if polarity is None else (polarity,):
        if (found := segment(even, is_dark)) is not None:
            unruled = erase_lines(even, found.foreground)
            without_lines = None if unruled is None else segment(unruled, is_dark)
            segmentations.append(without_lines or found)
    segmentations.sort(key=lambda found: -found.score)
    options = []
    for found in segmentations:
        if found.score < MIN_RELATIVE_SCORE * segmentations[0].score:
            break
        options.append(found)
        if not multi and (merged := merge_distant(found)) is not None:
            options.append(merged)
    return [extract_digits(option, multi, stages) for option in options]


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
    part = found.gray[candidate.box.slices(round(0.3 * candidate.box.size) + 4)]
    stroke_width = max(c.stroke_width for c in candidate.components)
    size = min(STRUCTURING_SIZE_FRACTION, (4 * stroke_width + 5) / max(part.shape))
    refined = segment(part, found.foreground.is_dark, size, found.max_gap)
    # A much smaller digit would be a piece of the first.
    if refined is None or refined.candidates[0].box.size < 0.6 * candidate.box.size:
        return unrefined
    return refined


def extract_digits(found: Segmentation, multi: bool, stages: Stages | None = None) -> Hypothesis:
    """Cut the digits out of a segmentation: the best candidate, or its whole line with `multi`."""
    best, line = found.candidates[0], text_line(found.candidates)
    refined = None if multi and len(line) > 1 else refine(found, best)
    if refined is None:
        crops = [_crop_digit(found, candidate) for candidate in line]
    else:
        crops = [_crop_digit(refined, refined.candidates[0])]
    quality = best.stroke_score * found.explained(line)
    hypothesis = Hypothesis([digit for digit, _ in crops], len(line), found.score, quality)
    if stages is not None:
        ink, mask = found.foreground.intensity.clip(0, 1), found.foreground.mask
        hypothesis.stages = stages | {"even": found.gray / 1.3, "ink": ink, "mask": mask}
        if refined is not None:
            hypothesis.stages["close"] = refined.foreground.intensity.clip(0, 1)
        for place, (digit, strokes) in enumerate(crops):
            number = f" {place}" if len(crops) > 1 else ""
            hypothesis.stages |= {f"digit{number}": strokes, f"glyph{number}": digit.pixels}
    return hypothesis


def text_line(candidates: list[DigitCandidate]) -> list[DigitCandidate]:
    """Return the best candidate and those on its line, of similar size, from left to right."""
    best = candidates[0]
    line = [best]
    for candidate in candidates[1:]:
        box, size = candidate.box, best.box.size
        offset = (box.top + box.bottom) / 2 - (best.box.top + best.box.bottom) / 2
        similar = 0.5 * size < box.size < 2 * size and candidate.score > 0.25 * best.score
        if similar and abs(offset) < 0.6 * size:
            line.append(candidate)
    return sorted(line, key=lambda candidate: candidate.box.left)


def _crop_digit(found: Segmentation, candidate: DigitCandidate) -> tuple[Digit, FloatImage]:
    """Return a digit, with its splits, and its strokes at working size, float32 [h, w]."""
    where = candidate.box.slices(2)
    wanted = np.zeros(int(found.labels.max()) + 1, dtype=bool)
    wanted[[c.label for c in candidate.components]] = True
    # One pixel around the mask keeps the soft rim of the strokes.
    near = ndimage.binary_dilation(wanted[found.labels[where]], np.ones((3, 3)))
    intensity = np.where(near, found.foreground.intensity[where], 0).clip(0, 1.2).astype(np.float32)
    strokes = normalise_stroke_width(intensity)
    splits = tuple(
        tuple(Digit(fit_glyph(normalise_stroke_width(piece)), candidate.box) for piece in pieces)
        for pieces in split_touching_digits(intensity)
        if all((piece > 0.5).any() for piece in pieces)
    )
    return Digit(fit_glyph(strokes), candidate.box, splits), strokes


def split_touching_digits(intensity: FloatImage) -> Iterator[list[FloatImage]]:
    """Yield the ways to split a wide digit into two or more, from left to right.

    The cuts are upright, through the columns with the least foreground near where digits of equal
    width would end.
    """
    height, width = intensity.shape
    if width < MIN_SPLIT_ASPECT * height:
        return
    profile = ndimage.gaussian_filter1d(intensity.clip(0, 1).sum(axis=0), max(0.5, 0.02 * height))
    columns = np.arange(width)
    for count in range(2, MAX_SPLIT_DIGITS + 1):
        share = width / count
        if share > MAX_DIGIT_ASPECT * height:
            continue
        if share < MIN_DIGIT_ASPECT * height:
            return
        cuts = [0]
        for number in range(1, count):
            offset = np.abs(columns - number * share) / share
            # The last term forbids cuts farther off than 0.35 of a digit's width.
            cost = profile / height + 0.4 * offset**2 + 9.0 * (offset > 0.35)
            cuts.append(int(np.argmin(cost)))
        pieces = [intensity[:, a:b] for a, b in pairwise([*cuts, width])]
        if min(piece.shape[1] for piece in pieces) >= 0.2 * share:
            yield pieces
