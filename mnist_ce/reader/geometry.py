"""Types and geometry that the reader's modules share: images, masks and boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatImage: TypeAlias = NDArray[np.float32]  # [height, width]
Mask: TypeAlias = NDArray[np.bool_]  # [height, width]
Labels: TypeAlias = NDArray[np.int32]  # [height, width], 0 in the background


class Box(NamedTuple):
    """A bounding box in pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def size(self) -> int:  # the longer side
        return max(self.height, self.width)

    def moved(self, down: int, right: int) -> Box:
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def slices(self, margin: int = 0) -> tuple[slice, slice]:
        """Return the rows and columns of the box and a margin."""
        rows = slice(max(0, self.top - margin), self.bottom + margin)
        return rows, slice(max(0, self.left - margin), self.right + margin)


def bounding_box(mask: Mask) -> Box:
    """Return the box of what is true in a mask [h, w], which must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def union(boxes: Iterable[Box]) -> Box:
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))
