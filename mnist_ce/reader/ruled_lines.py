"""Find the printed lines of ruled and squared paper, and paper them over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Ink, Mask, Plane

__all__ = ["erase_lines", "find_lines"]

SLOPES = np.tan(np.radians(np.arange(-5, 5.01, 0.2)))
SPAN = 0.7  # of the picture's width that a line must cover
THICKEST = 0.025  # of the picture's longer side
FREE = 0.06  # of the height
SAMPLE = 5_000  # pixels of ink that vote on a line's slope


def erase_lines(light: Plane, ink: Ink) -> Plane | None:
    """Return the picture with its printed lines papered over, or None where it has none.

    Args:
        light: float32 [h, w], evened out.
        ink: What was found in it.
    """
    level, upright = find_lines(ink.mask), _turned(find_lines(_turned(ink.mask)))
    if level is None and upright is None:
        return None
    none = np.zeros_like(ink.mask)
    level, upright = none if level is None else level, none if upright is None else upright
    # A stroke crosses a line where ink goes on on both sides of it, other lines left aside.
    kept = (level & _crossings(level, ink.mask & ~upright)) | (
        upright & _turned(_crossings(_turned(upright), _turned(ink.mask & ~level)))
    )
    lines = (level | upright) & ~(kept & ~(level & upright))
    rest = ink.mask & ~lines
    if not rest.any():
        return None  # the lines were all there is: perhaps a digit after all
    fringe = ndimage.binary_dilation(lines, iterations=2) & ~ndimage.binary_dilation(rest)
    paper = float(np.median(light[~ink.mask])) if (~ink.mask).any() else 1.0
    return np.where(fringe, np.float32(paper), light)


def find_lines(mask: Mask) -> Mask | None:
    """Return the bands of nearly level lines across the picture.

    A line is a run of rows, sheared by at most 5°, that has ink nearly all the way from the left
    edge to the right, and no thicker than a pen. One that is alone and beside the upper or lower
    edge is none: it may be the bar of a digit.

    Args:
        mask: bool [h, w], the ink.

    Returns:
        bool [h, w], the whole bands, with what crosses them; None where there are no lines.
    """
    height, width = mask.shape
    room = math.ceil(float(SLOPES.max()) * width / 2) + 1  # what shearing moves beyond the edges
    if not _spans(mask, room + 1):
        return None
    rows, columns = np.nonzero(mask)
    some = slice(None, None, rows.size // SAMPLE + 1)
    needed = 0.6 * SPAN * width * rows[some].size / rows.size  # a line may fall between two rows
    centred = columns - width / 2

    def sheared(slope: float, part: slice) -> NDArray[np.intp]:
        level: NDArray[np.intp] = np.rint(rows[part] - slope * centred[part]).astype(np.intp)
        level += room
        return level

    peaks = [int(np.bincount(sheared(slope, some)).max()) for slope in SLOPES]
    best = int(np.argmax(peaks))
    if peaks[best] < needed:
        return None
    level = sheared(SLOPES[best], slice(None))
    seen = np.zeros((height + 2 * room, width), dtype=bool)
    seen[level, columns] = True
    wide = seen.copy()
    wide[1:] |= seen[:-1]
    wide[:-1] |= seen[1:]
    runs, _ = ndimage.label(wide.mean(axis=1) > SPAN)
    thickest = max(5, round(THICKEST * max(height, width)) + 3)
    thin = [run for (run,) in ndimage.find_objects(runs) if run.stop - run.start <= thickest]
    first, last = room + FREE * height, room + (1 - FREE) * height
    if not any(first < run.start and run.stop < last for run in thin):
        return None
    bands = np.zeros(len(seen), dtype=bool)
    for run in thin:
        bands[run] = True
    all_rows, all_columns = np.indices(mask.shape)
    back = np.rint(all_rows - SLOPES[best] * (all_columns - width / 2)).astype(np.intp) + room
    found: Mask = bands[back]
    return found


def _spans(mask: Mask, reach: int) -> bool:
    """Whether ink spans the page within so many rows of any row, as every line does."""
    height = len(mask)
    above = np.zeros((height + 1, mask.shape[1]), dtype=np.int16)  # ink above each row
    np.cumsum(mask, axis=0, dtype=np.int16, out=above[1:])
    rows = np.arange(height)
    near = above[np.minimum(rows + reach + 1, height)] > above[np.maximum(rows - reach, 0)]
    return bool(near.mean(axis=1).max() > SPAN)


def _crossings(bands: Mask, strokes: Mask) -> Mask:
    """Where strokes go on both above and below a level band, perhaps a little aside."""
    outside = strokes & ~bands
    thick = max(2, int(bands.sum(axis=0).max()) // max(1, ndimage.label(bands[:, 0])[1]))
    reach = thick + 2
    square = np.ones((1, 2 * reach + 1))
    above = np.zeros_like(bands)
    below = np.zeros_like(bands)
    for step in range(1, reach + 1):
        above[step:] |= outside[:-step]
        below[:-step] |= outside[step:]
    crossing: Mask = ndimage.binary_dilation(above, square) & ndimage.binary_dilation(below, square)
    return crossing


def _turned(mask: Mask | None) -> Any:  # noqa: ANN401 - a mask for a mask, None for None
    return None if mask is None else np.ascontiguousarray(mask.T)
