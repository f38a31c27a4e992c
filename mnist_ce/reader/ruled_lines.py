"""Removal of the printed lines of ruled and squared paper."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.mnist_format import FloatImage
from mnist_ce.reader.stroke_width import Mask

LINE_SLOPES = np.tan(np.radians(np.arange(-5, 5.01, 0.2)))  # within 5°, in steps of 0.2°
MIN_SPAN_FRACTION = 0.7  # of the image's width that a line must cover
MAX_THICKNESS_FRACTION = 0.025  # of the image's longer side
EDGE_MARGIN_FRACTION = 0.06  # of the image's height
MAX_UNDERLINED_FRACTION = 0.75  # of the image's width, with ink above a line near its lower edge
BOX_SLOPES = np.tan(np.radians(np.arange(-8, 8.01, 0.5)))
MIN_SIDES = 0.7, 0.7  # level and upright ones of a box, of a digit's height
MAX_SIDE_THICKNESS = 0.25  # of the shortest length
FAINT_INTENSITY = 0.25
MAX_VOTING_PIXELS = 5_000  # bounds the time of the vote on a slope


def erase_lines(
    gray: FloatImage, foreground: Foreground, height: float | None = None
) -> FloatImage | None:
    """Return an evenly lit image with its printed lines painted over, or None without lines.

    With `height`, that of a digit in pixels, the sides of a form's boxes are lines, too.
    """
    mask = foreground.mask
    level = find_lines(mask, may_underline=True)
    upright = find_lines(np.ascontiguousarray(mask.T))
    faint = foreground.intensity > FAINT_INTENSITY  # of a print that is fainter than the ink
    boxes = None if height is None else find_boxes(mask | faint, height)
    if level is None and upright is None and boxes is None:
        return None
    level = np.zeros_like(mask) if level is None else level
    upright = np.zeros_like(mask) if upright is None else upright.T
    if boxes is not None:
        level, upright = level | boxes[0], upright | boxes[1]
    # A stroke crosses a line where foreground continues on both sides of it, other lines aside.
    kept = level & _crossings(level, mask & ~upright)
    kept |= upright & _crossings(upright.T, (mask & ~level).T).T
    lines = (level | upright) & ~(kept & ~(level & upright))
    rest = mask & ~lines
    if not rest.any():
        return None  # nothing but lines: perhaps a digit after all
    # Two pixels of the lines' soft rims go too, but none beside the strokes.
    fringe = ndimage.binary_dilation(lines, iterations=2) & ~ndimage.binary_dilation(rest)
    background = float(np.median(gray[~mask])) if (~mask).any() else 1.0
    return np.where(fringe, np.float32(background), gray)


def find_lines(mask: Mask, *, may_underline: bool = False) -> Mask | None:
    """Return the bands of nearly horizontal lines across the image, with what crosses them.

    A line is a run of rows, sheared by at most 5°, with foreground nearly all the way from the
    left edge to the right, and no thicker than a pen. None if there are no lines, or all of them
    lie close to the upper or lower edge, where one may be the bar of a digit; with `may_underline`
    a line close to the lower edge counts where all other ink is clearly narrower.
    """
    height, width = mask.shape
    pad = math.ceil(float(LINE_SLOPES.max()) * width / 2) + 1  # rows that shearing adds
    if not _spans_width(mask, pad + 1):
        return None
    rows, columns = np.nonzero(mask)
    voting = slice(None, None, rows.size // MAX_VOTING_PIXELS + 1)
    # A line may fall between two rows: one row needs only 0.6 of what a line has.
    needed = 0.6 * MIN_SPAN_FRACTION * width * rows[voting].size / rows.size
    centred = columns - width / 2

    def sheared_rows(slope: float, part: slice) -> NDArray[np.intp]:
        level: NDArray[np.intp] = np.rint(rows[part] - slope * centred[part]).astype(np.intp) + pad
        return level

    peaks = [int(np.bincount(sheared_rows(slope, voting)).max()) for slope in LINE_SLOPES]
    slope = LINE_SLOPES[int(np.argmax(peaks))]
    if max(peaks) < needed:
        return None
    sheared = np.zeros((height + 2 * pad, width), dtype=bool)
    sheared[sheared_rows(slope, slice(None)), columns] = True
    thickened = sheared.copy()  # a line that wavers by a pixel still fills one row
    thickened[1:] |= sheared[:-1]
    thickened[:-1] |= sheared[1:]
    runs, _ = ndimage.label(thickened.mean(axis=1) > MIN_SPAN_FRACTION)
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
        return None
    all_rows, all_columns = np.indices(mask.shape)
    back = np.rint(all_rows - slope * (all_columns - width / 2)).astype(np.intp) + pad
    bands: Mask = is_line[back]
    return bands


def _spans_width(mask: Mask, reach: int) -> bool:
    # A cheap necessary condition, which spares most images the vote on a slope.
    height = len(mask)
    above = np.zeros((height + 1, mask.shape[1]), dtype=np.int16)  # foreground above each row
    np.cumsum(mask, axis=0, dtype=np.int16, out=above[1:])
    rows = np.arange(height)
    near = above[np.minimum(rows + reach + 1, height)] > above[np.maximum(rows - reach, 0)]
    return bool(near.mean(axis=1).max() > MIN_SPAN_FRACTION)


def find_boxes(mask: Mask, height: float) -> tuple[Mask, Mask] | None:
    """Return the level and the upright sides of a form's boxes, or None without boxes.

    A side is straight, thin and at least `MIN_SIDES` of a digit's height long. An upright one leads
    from one level side to another, and a level one meets two upright ones; a 1 touches neither.
    """
    level = _straight_bands(mask, MIN_SIDES[0] * height)
    levels, num_levels = ndimage.label(level, np.ones((3, 3)))
    if num_levels < 2:
        return None
    upright = _straight_bands(np.ascontiguousarray(mask.T), MIN_SIDES[1] * height).T
    uprights, _ = ndimage.label(upright, np.ones((3, 3)))
    reach = round(max(3, 0.12 * height))

    def met(rows: NDArray[np.intp], columns: NDArray[np.intp], row: int) -> int:
        column = round(float(columns[np.abs(rows - row) <= 2].mean()))
        top, left = max(0, row - reach), max(0, column - reach)
        near = levels[top : row + reach + 1, left : column + reach + 1]
        return int(np.bincount(near[near > 0]).argmax()) if near.any() else 0

    ends: dict[int, tuple[int, int]] = {}  # the level sides that an upright one leads from and to
    for number, (rows, columns) in enumerate(ndimage.find_objects(uprights), 1):
        if rows.stop - rows.start < 0.8 * height:
            continue
        r, c = np.nonzero(uprights[rows, columns] == number)
        r, c = r + rows.start, c + columns.start
        pair = met(r, c, rows.start), met(r, c, rows.stop - 1)
        if all(pair) and pair[0] != pair[1]:
            ends[number] = pair
    meetings = np.bincount([side for pair in ends.values() for side in pair], minlength=2)
    is_side = np.append(meetings >= 2, np.zeros(num_levels + 1 - len(meetings), dtype=bool))
    chosen = [number for number, pair in ends.items() if is_side[list(pair)].all()]
    if len(chosen) < 2:
        return None
    upright = np.isin(uprights, chosen)
    near = ndimage.maximum_filter(np.where(upright, uprights, 0), 2 * reach + 1)
    where = (near > 0) & level
    crossings = np.unique(np.stack([levels[where], near[where]]), axis=1)  # of the inner sides, too
    level = (np.bincount(crossings[0], minlength=num_levels + 1) >= 2)[levels]
    enclosed = ndimage.binary_fill_holes(level | upright) & ~ndimage.binary_dilation(
        level | upright, iterations=3
    )
    return (level, upright) if (enclosed & mask).any() else None  # else perhaps a square zero


def _straight_bands(mask: Mask, length: float) -> Mask:
    """Return the parts of nearly horizontal thin bands that are straight for `length` pixels."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask[:-1] & ~mask[1:])  # lower edges
    voting = slice(None, None, rows.size // MAX_VOTING_PIXELS + 1)
    centred = columns[voting] - width // 2

    def sharpness(slope: float) -> float:
        counts = np.bincount(np.rint(rows[voting] - slope * centred).astype(np.intp) + width)
        return float((counts[:-1] + counts[1:]) @ (counts[:-1] + counts[1:]))

    slope = float(max(BOX_SLOPES, key=sharpness)) if rows.size else 0.0
    shift = np.rint(slope * (np.arange(width) - width // 2)).astype(np.intp)
    pad = int(np.abs(shift).max()) + 1
    padded = np.pad(mask, ((pad, pad), (0, 0)))
    sheared_rows = np.arange(height + pad)[:, None]
    place = (sheared_rows + shift + pad // 2).clip(0, len(padded) - 1)
    sheared = np.take_along_axis(padded, place, axis=0)
    thick = sheared.copy()  # a band that wavers by a pixel still fills one row
    thick[1:] |= sheared[:-1]
    thick[:-1] |= sheared[1:]
    runs = ndimage.minimum_filter1d(thick.view(np.uint8), max(3, round(length)), axis=1)
    runs = ndimage.maximum_filter1d(runs, max(3, round(length)), axis=1).astype(bool)
    widest = max(5, round(MAX_SIDE_THICKNESS * length)) + 2
    blocks = ndimage.minimum_filter1d(runs.view(np.uint8), widest, axis=0)
    runs &= ~ndimage.maximum_filter1d(blocks, widest, axis=0).astype(bool)
    back = (np.arange(height)[:, None] - shift + pad - pad // 2).clip(0, len(runs) - 1)
    return np.take_along_axis(runs, back, axis=0) & mask


def _crossings(bands: Mask, strokes: Mask) -> Mask:
    """Return where strokes continue above and below a horizontal band, perhaps a little aside."""
    outside = strokes & ~bands
    num_crossed = max(1, int((bands[1:] & ~bands[:-1]).sum()))  # by the columns together
    reach = max(2, int(bands.sum()) // num_crossed) + 2  # their mean thickness, and 2
    above, below = np.zeros_like(bands), np.zeros_like(bands)
    for step in range(1, reach + 1):
        above[step:] |= outside[:-step]
        below[:-step] |= outside[step:]
    square = np.ones((1, 2 * reach + 1))
    crossing: Mask = ndimage.binary_dilation(above, square) & ndimage.binary_dilation(below, square)
    return crossing
