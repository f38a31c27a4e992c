"""Text lines of an image, and the ways to read their ink as digits, as segmentation lattices.

Ink is cut into pieces that are at most a digit each: connected components, and the parts of wide
ones. A lattice holds every run of consecutive pieces that may be one digit; the network decides
which of its paths reads best (`Predictor`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.components import Box, Component, Labels, bounding_box, union
from mnist_ce.reader.detector import load_detector
from mnist_ce.reader.mnist_format import FIELD_SIZE, FloatImage, fit_glyph
from mnist_ce.reader.stroke_width import normalise_stroke_width

# Lengths are fractions of the height of the image's digits, penalties are nats; all were chosen by
# `benchmarks/sheets.py` (docs/log.md).
MIN_ANCHOR = 0.5  # a lower component founds no line
MAX_LINE_OFFSET = 0.55  # of a digit's middle from those before it
MAX_JOINED_GAP = 0.3  # between pieces of one digit
MAX_SPAN_WIDTH, MAX_SPAN_PIECES = 1.5, 6
MIN_CUT_WIDTH = 0.7  # a narrower component is not cut
MAX_CUT_ASPECT = 10  # width over height of a component that is cut
# A component that the detector is as sure of, and hardly wider than high, is not cut: the penalty
# of one cut exceeds what the network could gain by it.
CLEAR_SCORE, MAX_CLEAR_WIDTH = 4.5, 1.0
CUT_STEP, SEAM_REACH = 0.08, 0.2  # places where a cut is looked for, and how far it may lead
MIN_PIECE_INK = 0.2  # between two cuts, in strokes as long as a digit is high
CUT_PENALTY, CUT_INK_PENALTY = 1.0, 0.5  # the latter per stroke width of ink that is cut through
NARROW_WIDTH, NARROW_PENALTY = 1.1, 3.0  # for cuts through what is as narrow as a letter
GAP_PENALTY, WIDTH_PENALTY, HEIGHT_PENALTY = 3.0, 3.0, 4.0
MIN_BOX_SIDES = 3
MIN_FRAMED = 0.1  # height of what a frame is around, of its own
WHOLE_IMAGE = Box(0, 0, FIELD_SIZE, FIELD_SIZE)


@dataclass(frozen=True, eq=False)
class Digit:
    """What may be one digit, in MNIST's format; equal to itself only, so that it can be a key."""

    pixels: NDArray[np.uint8]  # [28, 28]
    box: Box = WHOLE_IMAGE  # at the working size of the image
    penalty: float = 0.0  # for an unlikely size, for gaps within it, and for cuts at its ends
    mark: str | None = None  # the punctuation that its shape shows, which is no digit


@dataclass(frozen=True)
class Lattice:
    """Near ink: consecutive pieces from left to right, and the digits that runs of them may be."""

    num_pieces: int
    digits: dict[tuple[int, int], Digit]  # by first piece and the one after the last

    @classmethod
    def of(cls, digit: Digit) -> Lattice:
        """Return the lattice of a single digit."""
        return cls(1, {(0, 1): digit})

    def moved(self, down: int, right: int) -> Lattice:
        """Return the lattice with its boxes moved by so many pixels."""
        digits = {k: replace(d, box=d.box.moved(down, right)) for k, d in self.digits.items()}
        return Lattice(self.num_pieces, digits)

    @property
    def whole(self) -> Digit:
        """All pieces as one digit."""
        return self.digits[0, self.num_pieces]


@dataclass(frozen=True)
class Piece:
    """A component, or the part of one between two cuts."""

    label: int
    box: Box
    cut: float = 0.0  # the penalty of the cut at its right end, if there is one
    is_part: bool = False
    pixels: NDArray[np.uint8] | None = None  # [28, 28], where they are known


def digit_height(components: list[Component]) -> float:
    """Return the median of the components' heights, weighted by height, in pixels."""
    heights = np.sort([c.box.height for c in components])
    total = heights.cumsum()
    return float(heights[np.searchsorted(total, total[-1] / 2)])


def without_frames(components: list[Component]) -> list[Component]:
    """Return components without those around two others, or all if nothing else is left."""
    tops, lefts, bottoms, rights = np.array([c.box for c in components]).T
    within = (tops > tops[:, None]) & (bottoms < bottoms[:, None])
    within &= (lefts > lefts[:, None]) & (rights < rights[:, None])  # [outer, inner]
    heights = bottoms - tops
    within &= heights > MIN_FRAMED * heights[:, None]
    num_inside = within.sum(axis=1)
    return [c for c, count in zip(components, num_inside, strict=True) if count < 2] or components


def group_lines(components: list[Component], height: float) -> list[list[Component]]:
    """Group components into text lines, from top to bottom, each from left to right."""
    anchors = [c for c in components if c.box.height > MIN_ANCHOR * height]
    anchors.sort(key=_middle)
    slope = _slope(anchors, height)

    def level(component: Component) -> float:  # the row of its middle without the lines' slope
        return (component.box.top + component.box.bottom) / 2 - slope * _middle(component)

    lines: list[list[Component]] = []
    for anchor in anchors:
        offsets = [abs(level(anchor) - np.mean([level(c) for c in line[-3:]])) for line in lines]
        if offsets and min(offsets) < MAX_LINE_OFFSET * height:
            lines[int(np.argmin(offsets))].append(anchor)
        else:
            lines.append([anchor])
    lines.sort(key=lambda line: float(np.mean([level(c) for c in line])))
    merged = lines[:1]
    for line in lines[1:]:
        near = np.mean([level(c) for c in line]) - np.mean([level(c) for c in merged[-1]])
        if near < 0.45 * height:
            merged[-1] = merged[-1] + line
        else:
            merged.append(line)
    for component in components:  # dots, bars and dashes join the line of the nearest anchor
        if component.box.height <= MIN_ANCHOR * height and merged:
            gaps = [
                min(_gap(component, c) + 2 * abs(level(component) - level(c)) for c in line)
                for line in _anchors(merged, height)
            ]
            if min(gaps) < 2.0 * height:
                merged[int(np.argmin(gaps))].append(component)
    return [sorted(line, key=_middle) for line in merged]


def _anchors(lines: list[list[Component]], height: float) -> list[list[Component]]:
    return [[c for c in line if c.box.height > MIN_ANCHOR * height] for line in lines]


def _middle(component: Component) -> float:
    return (component.box.left + component.box.right) / 2


def _gap(a: Component, b: Component) -> int:
    return max(0, max(a.box.left, b.box.left) - min(a.box.right, b.box.right))


def _slope(anchors: list[Component], height: float) -> float:
    """Return the median slope from each anchor to its next neighbour on the right."""
    x = np.array([_middle(c) for c in anchors])
    y = np.array([(c.box.top + c.box.bottom) / 2 for c in anchors])
    across, down = x[None] - x[:, None], y[None] - y[:, None]
    near = (across > 0.3 * height) & (across < 5 * height)
    near &= np.abs(down) < np.maximum(0.4 * height, 0.3 * across)
    distance = np.where(near, across + 3 * np.abs(down), np.inf)
    if not near.any():
        return 0.0
    nearest = distance.argmin(axis=1)
    rows = np.flatnonzero(near.any(axis=1))
    return float(np.median(down[rows, nearest[rows]] / across[rows, nearest[rows]]))


def line_lattices(
    foreground: Foreground,
    labels: Labels,
    line: list[Component],
    height: float,
    max_gap: float = MAX_JOINED_GAP,
    *,
    with_cuts: bool = True,
) -> list[Lattice]:
    """Return the lattices of a line; between them are gaps wider than any within a digit."""
    labels = labels.copy()
    clusters: list[list[Piece]] = []
    right = -1e9
    for component in line:
        pieces = [Piece(component.label, component.box)]
        if with_cuts and _may_be_cut(component.box, height):
            where = foreground.intensity, labels, [component.label], component.box
            pixels = fit_glyph(crop_strokes(*where))
            pieces = [replace(pieces[0], pixels=pixels)]
            is_wide = component.box.width > MAX_CLEAR_WIDTH * height
            if is_wide or load_detector().scores(pixels[None])[0] < CLEAR_SCORE:
                pieces = list(_cut(foreground.intensity, labels, component, height))
        if not clusters or component.box.left - right > max_gap * height:
            clusters.append([])
        clusters[-1].extend(pieces)
        right = max(right, component.box.right)
    return [_lattice(foreground.intensity, labels, pieces, height) for pieces in clusters]


def _lattice(intensity: FloatImage, labels: Labels, pieces: list[Piece], height: float) -> Lattice:
    count, digits = len(pieces), {}
    for start in range(count):
        for stop in range(start + 1, count + 1):
            run = pieces[start:stop]
            box = union(piece.box for piece in run)
            is_whole = len(run) == count
            too_wide = box.width > MAX_SPAN_WIDTH * height or len(run) > MAX_SPAN_PIECES
            if len(run) > 1 and too_wide and not is_whole:
                continue
            pixels = run[0].pixels if len(run) == 1 else None
            if pixels is None:
                labels_of_run = [piece.label for piece in run]
                pixels = fit_glyph(crop_strokes(intensity, labels, labels_of_run, box))
            penalty = run[-1].cut + _shape_penalty(run, box, height)
            mark = _mark(run, box, height)
            digits[start, stop] = Digit(pixels, box, penalty, mark)
    return Lattice(count, digits)


def _shape_penalty(run: list[Piece], box: Box, height: float) -> float:
    gaps, right = 0, run[0].box.right
    for piece in run[1:]:
        gaps += max(0, piece.box.left - right)
        right = max(right, piece.box.right)
    wide = max(0.0, box.width / height - 1.1)
    unlike = max(0.0, 0.65 - box.height / height) + max(0.0, box.height / height - 1.5)
    return GAP_PENALTY * gaps / height + WIDTH_PENALTY * wide + HEIGHT_PENALTY * unlike


def single_mark(box: Box) -> str | None:
    """Return what the only ink of an image is by its shape, if that is no digit's."""
    return "a dash" if box.height < 0.25 * box.width else None


def _mark(run: list[Piece], box: Box, height: float) -> str | None:
    if any(piece.is_part for piece in run):
        return None
    if len(run) == 2 and all(_is_dash(piece.box, height) for piece in run):
        return "an equals sign"
    if _is_dash(box, height):
        return "a dash"
    return "a point" if box.size < 0.4 * height else None


def _is_dash(box: Box, height: float) -> bool:
    return box.height < 0.35 * height and box.width > 1.5 * box.height


def without_box_sides(line: list[Component]) -> list[Component]:
    """Return a line without the upright sides of a form's boxes, which reach equally far.

    They are at least three, thin and higher than the digits: a 1 is seldom, three never.
    """
    thin = [c for c in line if c.box.height > 5 * c.box.width]
    others = [c.box.height for c in line if c not in thin] or [0]
    sides: set[int] = set()
    for a in thin:
        reach = 0.08 * a.box.height
        level = [
            b.label
            for b in thin
            if abs(a.box.top - b.box.top) < reach and abs(a.box.bottom - b.box.bottom) < reach
        ]
        if len(level) >= MIN_BOX_SIDES and a.box.height > 1.15 * np.median(others):
            sides.update(level)
    return [c for c in line if c.label not in sides]


def crop_strokes(intensity: FloatImage, labels: Labels, wanted: list[int], box: Box) -> FloatImage:
    """Return the strokes of the labels in a box with a usual width, float32 [h, w]."""
    where = box.slices(2)
    # One pixel around the mask keeps the soft rim of the strokes, but not of other digits.
    found = labels[where]
    mask = np.isin(found, wanted)
    near = ndimage.binary_dilation(mask, np.ones((3, 3))) & (mask | (found == 0))
    return normalise_stroke_width(np.where(near, intensity[where], 0).clip(0, 1.2))


def _may_be_cut(box: Box, height: float) -> bool:
    is_rule = box.width > MAX_CUT_ASPECT * box.height
    return box.width >= MIN_CUT_WIDTH * height and box.height >= MIN_ANCHOR * height and not is_rule


def _cut(
    intensity: FloatImage, labels: Labels, component: Component, height: float
) -> Iterator[Piece]:
    """Yield the pieces of a component, and give each its own label in `labels`."""
    box = component.box
    where = box.slices()
    own = labels[where] == component.label
    ink = np.where(own, intensity[where].clip(0, 1), 0)
    seams = find_seams(ink, height)
    amounts = np.take_along_axis(ink, seams.T, axis=1).sum(axis=0)
    least = MIN_PIECE_INK * component.stroke_width * height
    columns = np.arange(box.width)
    sides = {-1: np.zeros_like(own), len(seams): own}  # the ink on the left of each cut
    for number in np.argsort(amounts, kind="stable"):
        left = own & (columns < seams[number][:, None])
        if all((left ^ other).sum() >= least for other in sides.values()):
            sides[int(number)] = left
    done = sides.pop(-1)
    for number in sorted(sides, key=lambda n: sides[n].sum()):
        part = sides[number] & ~done
        if not part.any():
            continue
        done |= part
        cut = 0.0
        if number < len(seams):
            strokes = amounts[number] / component.stroke_width
            narrow = NARROW_PENALTY * max(0.0, NARROW_WIDTH - box.width / height)
            cut = CUT_PENALTY + narrow + CUT_INK_PENALTY * max(0.0, float(strokes) - 1)
        label = int(labels.max()) + 1
        labels[where][part] = label
        place = bounding_box(part).moved(box.top, box.left)
        yield Piece(label, place, cut, is_part=len(sides) > 1)


def find_seams(ink: FloatImage, height: float) -> NDArray[np.intp]:
    """Return paths [n, h] from top to bottom through little ink, the column of each row.

    Each starts its search at another place. From row to row a path moves by at most one column
    (dynamic programming over all paths at once).
    """
    reach = max(2, round(SEAM_REACH * height))
    places = np.arange(reach, ink.shape[1] - reach // 2, max(1, round(CUT_STEP * height)))
    offsets = np.arange(-reach, reach + 1)
    columns = places[:, None] + offsets  # [n, 2 × reach + 1]
    outside = (columns < 1) | (columns >= ink.shape[1])
    columns = columns.clip(1, ink.shape[1] - 1)
    cost = ink[:, columns] + 0.01 * np.abs(offsets) / reach + 9.0 * outside  # [h, n, …]
    total, came_from = cost[0], np.zeros(cost.shape, dtype=np.intp)
    wall = np.full((len(places), 1), np.inf)
    for row in range(1, len(cost)):
        left = np.concatenate([wall, total[:, :-1]], axis=1) + 0.01
        right = np.concatenate([total[:, 1:], wall], axis=1) + 0.01
        best = np.minimum(total, np.minimum(left, right))
        came_from[row] = np.where(best == total, 0, np.where(best == left, -1, 1))
        total = cost[row] + best
    path = total.argmin(axis=1)  # [n]
    number = np.arange(len(places))
    seams = np.empty((len(places), len(cost)), dtype=np.intp)
    for row in range(len(cost) - 1, -1, -1):
        seams[:, row] = columns[number, path]
        path = path + came_from[row, number, path]
    return seams
