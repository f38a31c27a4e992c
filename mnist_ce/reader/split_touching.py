"""Ways to cut ink that may be several digits which touch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy import ndimage

from mnist_ce.reader.binarize import Plane

__all__ = ["cuts"]

WIDE = 0.95  # width over height; a single digit is seldom wider
NARROWEST, WIDEST = 0.35, 1.0  # width over height of one digit in a row
MOST = 6


def cuts(levels: Plane) -> Iterator[list[Plane]]:
    """Yield the ways to cut one piece of ink into two or more digits, left to right.

    The cuts are upright, through the columns with the least ink near where digits of equal width
    would end. Which way is right, if any, is for the network to say.

    Args:
        levels: float32 [h, w], cropped.
    """
    height, width = levels.shape
    if width < WIDE * height:
        return
    ink = levels.clip(0, 1).sum(axis=0)
    ink = ndimage.gaussian_filter1d(ink, max(0.5, 0.02 * height))
    columns = np.arange(width)
    for count in range(2, MOST + 1):
        share = width / count
        if share > WIDEST * height:
            continue
        if share < NARROWEST * height:
            return
        ends = [0]
        for number in range(1, count):
            off = np.abs(columns - number * share) / share
            cost = ink / height + 0.4 * off**2 + 9.0 * (off > 0.35)
            ends.append(int(np.argmin(cost)))
        ends.append(width)
        if min(np.diff(ends)) >= 0.2 * share:
            yield [levels[:, a:b] for a, b in pairwise(ends)]
