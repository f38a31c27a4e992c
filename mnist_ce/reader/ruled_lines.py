"""Removal of the printed lines of ruled and squared paper."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.data.stroke_width import Mask
from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.image_io import FloatImage

LINE_SLOPES = np.tan(np.radians(np.arange(-5, 5.01, 0.2)))  # within 5°, in steps of 0.2°
MIN_SPAN_FRACTION = 0.7  # of the image's width that a line must cover
MAX_THICKNESS_FRACTION = 0.025  # of the image's longer side
EDGE_MARGIN_FRACTION = 0.06  # of the image's height
MAX_UNDERLINED_FRACTION = 0.75  # of the image's width, with ink above a line near its lower edge
MAX_VOTING_PIXELS = 5_000  # bounds the time of the vote on a slope


def erase_lines(gray: FloatImage, foreground: Foreground) -> FloatImage | None:
    """Return an evenly lit image with its printed lines painted over, or None without lines."""
    mask = foreground.mask
    level = find_lines(mask, may_underline=True)
    upright = find_lines(np.ascontiguousarray(mask.T))
    if level is None and upright is None:
        return None
    level = np.zeros_like(mask) if level is None else level
    upright = np.zeros_like(mask) if upright is None else upright.T
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


def _crossings(bands: Mask, strokes: Mask) -> Mask:
    """Return where strokes continue above and below a horizontal band, perhaps a little aside."""
    outside = strokes & ~bands
    num_bands = max(1, ndimage.label(bands[:, 0])[1])
    reach = max(2, int(bands.sum(axis=0).max()) // num_bands) + 2  # their mean thickness, and 2
    above, below = np.zeros_like(bands), np.zeros_like(bands)
    for step in range(1, reach + 1):
        above[step:] |= outside[:-step]
        below[:-step] |= outside[step:]
    square = np.ones((1, 2 * reach + 1))
    crossing: Mask = ndimage.binary_dilation(above, square) & ndimage.binary_dilation(below, square)
    return crossing
