"""Text lines of an image, and the ways to read their ink as digits, as segmentation lattices.

Ink is cut into pieces that are at most a digit each: connected components, and the parts of wide
ones. A lattice holds every run of consecutive pieces that may be one digit; the network decides
which of its paths reads best (`Predictor`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.components import Component, glyph_of
from mnist_ce.reader.geometry import Box, FloatImage, Labels, Mask, bounding_box, union
from mnist_ce.reader.mnist_format import FIELD_SIZE, load_detector

# Lengths are fractions of the height of the image's digits, penalties are nats; all were chosen by
# `benchmarks/sheets.py` (docs/log.md).

# Text lines. A digit's middle strays from its line by what handwriting and the slope's error give,
# and is a whole height away from any digit of the next line.
MIN_ANCHOR = 0.5  # a lower component, such as a dash, founds no line
MAX_LINE_OFFSET = 0.55  # of a digit's middle from the last three of its line
MAX_MARK_DISTANCE = 2.0  # of dots, bars and dashes from the line that they join

# Pieces of one digit: a bar of a 5 or a 4 may be loose.
MAX_JOINED_GAP = 0.3  # a wider gap parts two lattices
# Of the runs of pieces that are tried as one digit: wider than any, and a bound for the number of
# runs, each of which the network reads.
MAX_SPAN_WIDTH, MAX_SPAN_PIECES = 1.5, 6

# A bound for the time that any drawing takes: pixels that may be cropped for all digits of an image
# in all hypotheses, and how many more pixels a digit counts for, whatever its size. Of 202 sheets,
# forms and rows the largest needs 0.8 of it.
MAX_WORK, WORK_OF_DIGIT, WORK_OF_SEAMS = 100e6, 70_000, 8

# Which components are cut: as wide as a digit and a bit of the next, no dashes, no printed rules.
MIN_CUT_WIDTH = 0.7
MAX_CUT_ASPECT = 10  # width over height
# A component that the detector is as sure of, and no wider than high, is not cut: the penalty of a
# cut exceeds what the network could gain by it. CPU of sheets 215 → 180 ms; up to a width of 1.3
# instead of 1.0, 55 instead of 80 % of touching pairs were exact (docs/log.md).
CLEAR_SCORE, MAX_CLEAR_WIDTH = 4.5, 1.0

# Where they are cut.
CUT_STEP = 0.08  # found 57 % of touching pairs, 0.2 only 43 % (docs/log.md)
SEAM_REACH = 0.2  # of a seam to either side of its middle: how far a slanted 1 or 7 leans
SEAM_COST = 0.01  # in ink, per turn and at the end of the reach: of equal paths the straightest
OUTSIDE_COST = 9.0  # more than the ink of any path through the component
MIN_PIECE_INK = 0.2  # between two cuts, in strokes as long as a digit is high
MAX_PIECES = 100  # of a component; a row of 20 touching digits has 80, and a fabric is none

# What a cut costs: CUT_INK_PENALTY per stroke width of ink that is cut through, beyond one, and
# LOOP_PENALTY through a hole as high as MIN_HOLE: of 40 rows of touching zeros 26 instead of 15 are
# exact, since seams pass between two loops, not through one (docs/log.md). Through what is as
# narrow as a letter it is dearer: with that and 3 nats for an unread part 26 instead of 43 parts
# among signs were wrong, for 2 of 94 digits in touching rows (docs/log.md).
CUT_PENALTY, CUT_INK_PENALTY = 1.0, 0.5
HOLE_COST, LOOP_PENALTY, MIN_HOLE = 1.0, 1.0, 0.3  # per pixel of a seam, in ink; nats; heights
NARROW_WIDTH, NARROW_PENALTY = 1.1, 3.0
# What an unlikely shape costs, per digit height of gaps, and of width or height beyond these.
GAP_PENALTY, WIDTH_PENALTY, HEIGHT_PENALTY = 3.0, 3.0, 4.0
MAX_USUAL_WIDTH, MIN_USUAL_HEIGHT, MAX_USUAL_HEIGHT = 1.1, 0.65, 1.5

# Shapes of punctuation. A plus sign has little ink outside two bars of five pixels, which reach as
# far from their crossing: that holds of 83 % of drawn ones and of 14 of MNIST's 60,000 digits.
MAX_DASH_HEIGHT, MIN_DASH_ASPECT, MAX_POINT_SIZE = 0.35, 1.5, 0.4
BAR_PX, MIN_ARM_PX, MAX_INK_BESIDE = 5, 6, 0.05
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
        return cls(1, {(0, 1): digit})

    @property
    def whole(self) -> Digit:  # all pieces as one
        return self.digits[0, self.num_pieces]


@dataclass(frozen=True)
class Piece:
    """A component, or the part of one between two cuts."""

    label: int
    box: Box
    cut_penalty: float = 0.0  # of the cut at its right end, if there is one
    is_part: bool = False
    pixels: NDArray[np.uint8] | None = None  # [28, 28], where they are known


class CrowdedError(Exception):
    """There is more ink to read than any page of digits has."""


class Work:
    """How much may still be read of an image."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, num_pixels: int) -> None:
        self.left -= WORK_OF_DIGIT + num_pixels
        if self.left < 0:
            raise CrowdedError


def digit_height(components: list[Component]) -> float:
    """Return the median of the components' heights, weighted by height, in pixels."""
    heights = np.sort([c.box.height for c in components])
    total = heights.cumsum()
    return float(heights[np.searchsorted(total, total[-1] / 2)])


def group_lines(components: list[Component], height: float) -> list[list[Component]]:
    """Group components into text lines, from top to bottom, each from left to right."""
    top, left, bottom, right = np.array([c.box for c in components], dtype=np.float64).T
    x, is_anchor = (left + right) / 2, bottom - top > MIN_ANCHOR * height
    level = (top + bottom) / 2  # the row of its middle, without the lines' slope
    level -= _slope(x[is_anchor], level[is_anchor], height) * x
    lines: list[list[int]] = []
    for anchor in sorted(np.flatnonzero(is_anchor).tolist(), key=x.__getitem__):
        offsets = [abs(level[anchor] - level[line[-3:]].mean()) for line in lines]
        if offsets and min(offsets) < MAX_LINE_OFFSET * height:
            lines[int(np.argmin(offsets))].append(anchor)
        else:
            lines.append([anchor])
    lines.sort(key=lambda line: float(level[line].mean()))
    anchors = np.array([(number, anchor) for number, line in enumerate(lines) for anchor in line]).T
    for mark in np.flatnonzero(~is_anchor).tolist():  # joins the line of the nearest anchor
        other = anchors[1]
        gaps = np.maximum(left[mark], left[other]) - np.minimum(right[mark], right[other])
        # Twice the distance across the line: what lies between two lines joins the one beside.
        gaps = gaps.clip(0) + 2 * np.abs(level[mark] - level[other])
        if gaps.min() < MAX_MARK_DISTANCE * height:
            lines[anchors[0, gaps.argmin()]].append(mark)
    return [[components[n] for n in sorted(line, key=x.__getitem__)] for line in lines]


def _slope(x: NDArray[np.float64], y: NDArray[np.float64], height: float) -> float:
    """Return the median slope from each anchor to its next neighbour on the right."""
    # The neighbour is at least a narrow 1 away, no further than a wide gap, and within 0.4 of a
    # height or 17° of level; beside the distance across, the distance down counts three times.
    across, down = x[None] - x[:, None], y[None] - y[:, None]
    near = (across > 0.3 * height) & (across < 5 * height)
    near &= np.abs(down) < np.maximum(0.4 * height, 0.3 * across)
    distance = np.where(near, across + 3 * np.abs(down), np.inf)
    rows = np.flatnonzero(near.any(axis=1))
    nearest = distance[rows].argmin(axis=1)
    return float(np.median(down[rows, nearest] / across[rows, nearest])) if rows.size else 0.0


def line_lattices(
    foreground: Foreground,
    labels: Labels,
    line: list[Component],
    height: float,
    work: Work,
    max_gap: float = MAX_JOINED_GAP,
    *,
    with_cuts: bool = True,
) -> list[Lattice]:
    """Return the lattices of a line; between them are gaps wider than any within a digit.

    Raises:
        CrowdedError: If that is more work than is left.
    """
    intensity, labels = foreground.intensity, labels.copy()
    next_label = labels.size + 1  # above the label of any component
    clusters: list[list[Piece]] = []
    right = -np.inf
    for component in line:
        box = component.box
        pieces = [Piece(component.label, box)]
        is_rule = box.width > MAX_CUT_ASPECT * box.height
        is_large = box.width >= MIN_CUT_WIDTH * height and box.height >= MIN_ANCHOR * height
        if with_cuts and is_large and not is_rule:
            work.spend(WORK_OF_SEAMS * box.height * box.width)
            pixels = glyph_of(intensity, labels, [component.label], box)
            is_wide = box.width > MAX_CLEAR_WIDTH * height
            if is_wide or load_detector().scores(pixels[None])[0] < CLEAR_SCORE:
                where = box.slices()
                mask = labels[where] == component.label
                pieces, parts = cut(intensity[where], mask, component, height, next_label)
                labels[where][mask] = parts[mask]
                next_label += len(pieces)
            if len(pieces) == 1:
                pieces = [replace(pieces[0], pixels=pixels)]
        if not clusters or box.left - right > max_gap * height:
            clusters.append([])
        clusters[-1].extend(pieces)
        right = max(right, box.right)
    return [_lattice(intensity, labels, pieces, height, work) for pieces in clusters]


def _lattice(
    intensity: FloatImage, labels: Labels, pieces: list[Piece], height: float, work: Work
) -> Lattice:
    count, digits = len(pieces), {}
    for start in range(count):
        longest = min(start + MAX_SPAN_PIECES, count)
        for stop in [*range(start + 1, longest + 1), *([count] if start == 0 else [])]:
            run = pieces[start:stop]
            box = union(piece.box for piece in run)
            is_whole = len(run) == count
            if len(run) > 1 and box.width > MAX_SPAN_WIDTH * height and not is_whole:
                continue
            work.spend(box.height * box.width)
            pixels = run[0].pixels if len(run) == 1 else None
            if pixels is None:
                pixels = glyph_of(intensity, labels, [piece.label for piece in run], box)
            penalty = run[-1].cut_penalty + _shape_penalty(run, box, height)
            digits[start, stop] = Digit(pixels, box, penalty, _mark(run, box, height, pixels))
    return Lattice(count, digits)


def _shape_penalty(run: list[Piece], box: Box, height: float) -> float:
    gaps, right = 0, run[0].box.right
    for piece in run[1:]:
        gaps += max(0, piece.box.left - right)
        right = max(right, piece.box.right)
    too_wide = max(0.0, box.width / height - MAX_USUAL_WIDTH)
    too_low = max(0.0, MIN_USUAL_HEIGHT - box.height / height)
    too_high = max(0.0, box.height / height - MAX_USUAL_HEIGHT)
    penalty = GAP_PENALTY * gaps / height + WIDTH_PENALTY * too_wide
    return penalty + HEIGHT_PENALTY * (too_low + too_high)


def _mark(run: list[Piece], box: Box, height: float, pixels: NDArray[np.uint8]) -> str | None:
    if any(piece.is_part for piece in run):
        return None
    if len(run) == 2 and all(_is_dash(piece.box, height) for piece in run):
        return "an equals sign"
    if _is_dash(box, height):
        return "a dash"
    if box.size < MAX_POINT_SIZE * height:
        return "a point"
    return "a plus sign" if is_plus(pixels) else None


def is_plus(pixels: NDArray[np.uint8]) -> bool:
    ink, box = pixels.astype(np.float64), bounding_box(pixels >= pixels.max() / 4)
    row, column = (
        int(np.convolve(ink.sum(axis), np.ones(BAR_PX), "same").argmax()) for axis in (1, 0)
    )
    arms = (row - box.top, box.bottom - 1 - row, column - box.left, box.right - 1 - column)
    beside = np.arange(FIELD_SIZE)
    outside = ink[np.abs(beside - row) > BAR_PX // 2][:, np.abs(beside - column) > BAR_PX // 2]
    return min(arms) >= MIN_ARM_PX and bool(outside.sum() < MAX_INK_BESIDE * ink.sum())


def _is_dash(box: Box, height: float) -> bool:
    return box.height < MAX_DASH_HEIGHT * height and box.width > MIN_DASH_ASPECT * box.height


def cut(
    intensity: FloatImage, mask: Mask, component: Component, height: float, first_label: int
) -> tuple[list[Piece], Labels]:
    """Cut a component along seams: its pieces from left to right, and their labels in its box."""
    ink = np.where(mask, intensity.clip(0, 1), 0)
    outside = ndimage.label(np.pad(~mask, 1, constant_values=True))[0]
    holes = ~mask & (outside[1:-1, 1:-1] != outside[0, 0])
    seams = find_seams(ink + HOLE_COST * holes, height)
    # Each seam's length through ink, in stroke widths, and through holes, [seams]
    num_strokes = np.take_along_axis(ink, seams.T, axis=1).sum(axis=0) / component.stroke_width
    in_holes = np.take_along_axis(holes, seams.T, axis=1).sum(axis=0) / (MIN_HOLE * height)
    costs = CUT_PENALTY + CUT_INK_PENALTY * (num_strokes - 1).clip(0)
    costs += LOOP_PENALTY * np.minimum(in_holes, 1)
    # Choose seams, those through the least ink first, with enough ink between any two.
    min_area = MIN_PIECE_INK * component.stroke_width * height
    num_inked = np.pad(mask.cumsum(axis=1, dtype=np.int32), ((0, 0), (1, 0)))  # [h, w + 1]
    edges = [np.zeros(len(mask), dtype=np.intp), np.full(len(mask), mask.shape[1])]  # columns, [h]
    on_left = num_inked[:, [0, -1]].T  # of each edge, the ink in each row: [edges, h]
    penalties = [0.0, 0.0]
    narrow = NARROW_PENALTY * max(0.0, NARROW_WIDTH - component.box.width / height)
    for number in np.argsort(num_strokes, kind="stable"):
        left = np.take_along_axis(num_inked, seams[number][:, None], axis=1).T  # [1, h]
        if (np.abs(left - on_left).sum(axis=1) >= min_area).all():
            edges.append(seams[number])
            on_left = np.concatenate([on_left, left])
            penalties.append(float(costs[number]) + narrow)
    if len(edges) > MAX_PIECES + 1:
        edges = edges[:2]
    # Order the parts from left to right, and label what each holds beyond those before it.
    pieces: list[Piece] = []
    labels = np.zeros(mask.shape, dtype=np.int32)
    columns = np.arange(mask.shape[1])
    for number in sorted(range(1, len(edges)), key=lambda n: on_left[n].sum()):
        part = mask & (columns < edges[number][:, None]) & (labels == 0)
        if part.any():
            label = first_label + len(pieces)
            labels[part] = label
            box = bounding_box(part).moved(component.box.top, component.box.left)
            pieces.append(Piece(label, box, penalties[number], is_part=len(edges) > 2))
    return pieces, labels


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
    off_middle = SEAM_COST * np.abs(offsets) / reach
    cost = ink[:, columns] + off_middle + OUTSIDE_COST * outside  # [h, n, 2 × reach + 1]
    total, came_from = cost[0], np.zeros(cost.shape, dtype=np.intp)
    wall = np.full((len(places), 1), np.inf)
    for row in range(1, len(cost)):
        left = np.concatenate([wall, total[:, :-1]], axis=1) + SEAM_COST
        right = np.concatenate([total[:, 1:], wall], axis=1) + SEAM_COST
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
