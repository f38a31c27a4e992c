"""Printed lines and boxes of paper: erased from an image."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.geometry import Box, FloatImage, Labels, Mask

# Within 5° of level. A line is at most 0.1° from the nearest slope: 0.9 rows at the ends of 1000
# pixels, which thickening by a row on each side covers.
LINE_SLOPES = np.tan(np.radians(np.arange(-5, 5.01, 0.2)))
MIN_SPAN_FRACTION = 0.7  # of the image's width that a line must cover; more than any digit's bar
MAX_THICKNESS_FRACTION = 0.025  # of the image's longer side: a pen's stroke is wider in a close-up
EDGE_MARGIN_FRACTION = 0.06  # of the image's height
MAX_UNDERLINED_FRACTION = 0.75  # of the image's width, with ink above a line near its lower edge
MAX_VOTING_PIXELS = 5_000  # bounds the time of the vote on a slope

# Boxes of forms, whose sides are short, so that coarser steps will do. Lengths are fractions of a
# digit's height. Erasing boxes raised exact forms from 7 to 14 of 20 and left 5 instead of 86 parts
# wrong or extra; with level sides from 0.9 on, boxes drawn by hand were lost (docs/log.md).
BOX_SLOPES = np.tan(np.radians(np.arange(-8, 8.01, 0.5)))
MIN_SIDE = 0.7  # straight part of a side
MIN_UPRIGHT_SPAN = 0.8  # of an upright side from end to end
MAX_SIDE_THICKNESS = 0.25  # of the shortest side
MAX_CORNER_GAP = 0.12  # between the end of a side and the side that it meets
FAINT_INTENSITY = 0.25  # a print fainter than the ink is broken in the mask, which begins at 0.38


def erase_lines(gray: FloatImage, foreground: Foreground, digit_height: float) -> FloatImage | None:
    """Return an evenly lit image with its printed lines painted over, or None without lines."""
    mask = foreground.mask
    level = find_lines(mask, may_underline=True)
    upright = find_lines(np.ascontiguousarray(mask.T)).T
    faint = foreground.intensity > FAINT_INTENSITY
    level_sides, upright_sides = find_boxes(mask | faint, digit_height)
    level, upright = level | level_sides, upright | upright_sides
    if not (level.any() or upright.any()):
        return None
    # A stroke crosses a line where foreground continues on both sides of it, other lines aside.
    strokes = level & _crossings(level, mask & ~upright)
    strokes |= upright & _crossings(upright.T, (mask & ~level).T).T
    lines = (level | upright) & ~(strokes & ~(level & upright))
    rest = mask & ~lines
    if not rest.any():
        return None  # nothing but lines: perhaps a digit after all
    # Two pixels of the lines' soft rims go too, but none beside the strokes.
    fringe = ndimage.binary_dilation(lines, iterations=2) & ~ndimage.binary_dilation(rest)
    background = float(np.median(gray[~mask])) if (~mask).any() else 1.0
    return np.where(fringe, np.float32(background), gray)


def find_lines(mask: Mask, *, may_underline: bool = False) -> Mask:
    """Return the bands of nearly horizontal lines across the image, with what crosses them.

    A line is a run of rows, sheared by at most 5°, with foreground nearly all the way from the
    left edge to the right, and no thicker than a pen. There are none where all of them lie close to
    the upper or lower edge, where one may be the bar of a digit; with `may_underline` a line close
    to the lower edge counts where all other ink is clearly narrower.
    """
    height, width = mask.shape
    # A necessary condition, which spares most images the vote on a slope: a third of their time.
    reach = math.ceil(float(LINE_SLOPES.max()) * width / 2) + 2  # rows that a line may rise or fall
    near = ndimage.maximum_filter1d(mask.view(np.uint8), 2 * reach + 1, axis=0)
    if near.mean(axis=1).max() <= MIN_SPAN_FRACTION:
        return np.zeros_like(mask)
    rows, columns = _voting(mask)
    columns = columns - width / 2
    num_in_row = [int(_row_counts(rows, columns, slope).max()) for slope in LINE_SLOPES]
    # A line may fall between two rows: one row needs only 0.6 of what a line has.
    if max(num_in_row) < 0.6 * MIN_SPAN_FRACTION * width * rows.size / mask.sum():
        return np.zeros_like(mask)
    slope = float(LINE_SLOPES[int(np.argmax(num_in_row))])
    sheared = shear(mask, slope, width / 2)
    pad = (len(sheared) - height) // 2
    thick = ndimage.maximum_filter1d(sheared.view(np.uint8), 3, axis=0)  # as a band may waver
    runs, _ = ndimage.label(thick.mean(axis=1) > MIN_SPAN_FRACTION)
    # Both neighbouring rows come from thickening; a blurred line of one pixel fills three.
    max_thickness = max(5, round(MAX_THICKNESS_FRACTION * max(height, width)) + 3)
    thin = [run for (run,) in ndimage.find_objects(runs) if run.stop - run.start <= max_thickness]
    first, last = (pad + f * height for f in (EDGE_MARGIN_FRACTION, 1 - EDGE_MARGIN_FRACTION))
    is_line = np.zeros(len(sheared), dtype=bool)
    for run in thin:
        is_line[run] = True
    others = sheared[~is_line].any(axis=0)
    # In a tight crop the foot of a 2 is hardly wider than the rest, and a 1 with a foot is high.
    underlined = may_underline and width > 0.8 * height and others.mean() < MAX_UNDERLINED_FRACTION
    end = np.inf if underlined else last
    if not any(first < run.start and run.stop < end for run in thin):
        return np.zeros_like(mask)
    return unshear(np.broadcast_to(is_line[:, None], sheared.shape), slope, width / 2)


def shear(mask: Mask, slope: float, centre: float) -> Mask:
    """Move the columns of a mask so that lines of this slope, rows per column, become level.

    [h, w] → [h + 2 × pad, w]; the pad holds what moves beyond the upper and lower edge. The column
    at the centre keeps its place.
    """
    height, width = mask.shape
    shifts = np.rint(slope * (np.arange(width) - centre)).astype(np.intp)  # of a line, downwards
    pad = int(np.abs(shifts).max()) + 1
    rows = np.arange(height + 2 * pad)[:, None] + shifts - pad
    inside = (rows >= 0) & (rows < height)
    sheared: Mask = np.take_along_axis(mask, rows.clip(0, height - 1), axis=0) & inside
    return sheared


def unshear(sheared: Mask, slope: float, centre: float) -> Mask:
    """Undo `shear`: [h + 2 × pad, w] → [h, w]."""
    padded = shear(sheared, -slope, centre)  # → [h + 4 × pad, w]
    both_pads = len(padded) - len(sheared)
    return padded[both_pads:-both_pads]


def _voting(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = np.nonzero(mask)
    step = rows.size // MAX_VOTING_PIXELS + 1
    return rows[::step], columns[::step]


def _row_counts(
    rows: NDArray[np.intp], centred_columns: NDArray[np.floating], slope: float
) -> NDArray[np.intp]:
    """Return how many of the pixels lie in each row after shearing, the first row being empty."""
    sheared = np.rint(rows - slope * centred_columns).astype(np.intp)
    return np.bincount(sheared - sheared.min() + 1)


def _crossings(bands: Mask, strokes: Mask) -> Mask:
    """Return where strokes continue above and below a horizontal band, perhaps a little aside."""
    outside = strokes & ~bands
    num_crossed = max(1, int((bands[1:] & ~bands[:-1]).sum()))  # by the columns together
    reach = max(2, int(bands.sum()) // num_crossed) + 2  # their mean thickness, and 2
    above, below = np.zeros_like(bands), np.zeros_like(bands)
    for step in range(1, reach + 1):
        above[step:] |= outside[:-step]
        below[:-step] |= outside[step:]
    aside = np.ones((1, 2 * reach + 1))
    crossing: Mask = ndimage.binary_dilation(above, aside) & ndimage.binary_dilation(below, aside)
    return crossing


def find_boxes(mask: Mask, digit_height: float) -> tuple[Mask, Mask]:
    """Return the level and the upright sides of a form's boxes.

    A side is straight and thin. The sides make a graph: each upright one leads from one level side
    to another, and a level one is the end of two upright ones at least; a 1 leads to neither.
    """
    level = _straight_bands(mask, MIN_SIDE * digit_height)
    levels, num_levels = ndimage.label(level, np.ones((3, 3)))
    nothing = np.zeros_like(mask), np.zeros_like(mask)
    if num_levels < 2:
        return nothing
    upright = _straight_bands(np.ascontiguousarray(mask.T), MIN_SIDE * digit_height).T
    uprights, _ = ndimage.label(upright, np.ones((3, 3)))
    reach = round(max(3, MAX_CORNER_GAP * digit_height))
    ends: dict[int, tuple[int, int]] = {}  # of upright sides: the level ones above and below
    for number, where in enumerate(ndimage.find_objects(uprights), 1):
        if where[0].stop - where[0].start < MIN_UPRIGHT_SPAN * digit_height:
            continue
        rows, columns = np.nonzero(uprights[where] == number)
        rows, columns = rows + where[0].start, columns + where[1].start
        upper, lower = (
            _label_near(levels, row, round(float(columns[np.abs(rows - row) <= 2].mean())), reach)
            for row in (where[0].start, where[0].stop - 1)
        )
        if upper and lower and upper != lower:
            ends[number] = upper, lower
    num_ends = Counter(side for pair in ends.values() for side in pair)
    chosen = [number for number, pair in ends.items() if min(num_ends[s] for s in pair) >= 2]
    if len(chosen) < 2:
        return nothing
    upright = np.isin(uprights, chosen)
    # Level sides meet two of the chosen upright ones; inner ones of a table end at none.
    near = ndimage.maximum_filter(np.where(upright, uprights, 0), 2 * reach + 1)
    where = (near > 0) & level
    corners = np.unique(np.stack([levels[where], near[where]]), axis=1)
    level = (np.bincount(corners[0], minlength=num_levels + 1) >= 2)[levels]
    sides = level | upright
    inside = ndimage.binary_fill_holes(sides) & ~ndimage.binary_dilation(sides, iterations=3)
    return (level, upright) if (inside & mask).any() else nothing  # perhaps a square zero


def _label_near(labels: Labels, row: int, column: int, reach: int) -> int:
    """Return the label of most pixels within `reach` of a place, or 0."""
    near = labels[Box(row, column, row + 1, column + 1).slices(reach)]
    return int(np.bincount(near[near > 0]).argmax()) if near.any() else 0


def _straight_bands(mask: Mask, length: float) -> Mask:
    """Return the parts of nearly horizontal thin bands that are straight for `length` pixels."""
    centre = mask.shape[1] // 2
    rows, columns = _voting(mask[:-1] & ~mask[1:])  # lower edges

    def sharpness(slope: float) -> float:  # many pixels in few pairs of rows
        counts = _row_counts(rows, columns - centre, slope)
        pairs = counts[:-1] + counts[1:]
        return float(pairs @ pairs)

    slope = float(max(BOX_SLOPES, key=sharpness)) if rows.size else 0.0
    runs = ndimage.maximum_filter1d(shear(mask, slope, centre).view(np.uint8), 3, axis=0)
    span = max(3, round(length))
    runs = ndimage.maximum_filter1d(ndimage.minimum_filter1d(runs, span, axis=1), span, axis=1)
    widest = max(5, round(MAX_SIDE_THICKNESS * length)) + 2  # both neighbouring rows come on top
    blocks = ndimage.maximum_filter1d(
        ndimage.minimum_filter1d(runs, widest, axis=0), widest, axis=0
    )
    bands: Mask = unshear(runs.astype(bool) & ~blocks.astype(bool), slope, centre) & mask
    return bands
