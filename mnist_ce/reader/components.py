"""Which connected pieces of ink make up a digit, and which are dirt, edges or other digits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Ink
from mnist_ce.reader.stroke_width import outline

Labels: TypeAlias = NDArray[np.int32]

__all__ = ["NEAR", "Group", "Part", "find_parts", "group_parts"]

MAX_PARTS = 400
NEAR = 0.12  # how far apart the pieces of a broken digit are; see `belong`


@dataclass(frozen=True)
class Part:
    """One connected piece of ink.

    Args:
        label: Its number in the labelled picture.
        top: First row, and so on: bottom and right are exclusive.
        left: First column.
        bottom: Behind the last row.
        right: Behind the last column.
        area: In pixels.
        stroke: Mean width of its lines in pixels, 2 × area / outline.
        touch: The share of its outline that lies on the picture's border.
        level: Its mean ink level.
        likeness: How much it looks like writing whatever its size, in [0, 1].
        span: Its size over the picture's: (longer side + √area) / longer side.
    """

    label: int
    top: int
    left: int
    bottom: int
    right: int
    area: int
    stroke: float
    touch: float
    level: float
    likeness: float
    span: float

    @property
    def score(self) -> float:
        """How much it looks like (a piece of) the digit that the picture shows."""
        return self.likeness * self.span

    @property
    def rows(self) -> slice:
        """The rows of its box."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """The columns of its box."""
        return slice(self.left, self.right)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    @property
    def size(self) -> int:
        """The longer side."""
        return max(self.height, self.width)


@dataclass
class Group:
    """The parts of one digit."""

    parts: list[Part] = field(default_factory=list)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right), the latter two exclusive."""
        return (
            min(p.top for p in self.parts),
            min(p.left for p in self.parts),
            max(p.bottom for p in self.parts),
            max(p.right for p in self.parts),
        )

    @property
    def score(self) -> float:
        """The sum of the parts' scores."""
        return sum(p.score for p in self.parts)

    @property
    def likeness(self) -> float:
        """The mean likeness of the parts, the large ones counting more."""
        return self.score / sum(p.span for p in self.parts)

    @property
    def area(self) -> int:
        """In pixels of ink."""
        return sum(p.area for p in self.parts)

    @property
    def size(self) -> int:
        """The longer side of the box."""
        top, left, bottom, right = self.box
        return max(bottom - top, right - left)


def find_parts(ink: Ink) -> tuple[Labels, list[Part]]:
    """Label the connected ink and measure each piece.

    Returns:
        int32 [h, w] of labels, and the parts from the best to the worst score, dirt left out.
    """
    labels, count = ndimage.label(ink.mask, np.ones((3, 3)))
    if count == 0:
        return labels, []
    height, width = labels.shape
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    edge = outline(ink.mask)
    outlines = np.bincount(labels[edge], minlength=count + 1)
    supports = np.bincount(labels[edge], ink.edges[edge], minlength=count + 1)
    rim = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    touches = np.bincount(rim, minlength=count + 1)
    sums = np.bincount(labels.ravel(), ink.levels.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(labels)
    wanted = np.argsort(areas[1:])[::-1][:MAX_PARTS] + 1
    longer = max(height, width)
    parts: list[Part] = []
    for label in wanted:
        area = int(areas[label])
        if area < 4:
            break
        rows, columns = boxes[label - 1]
        size = max(rows.stop - rows.start, columns.stop - columns.start)
        stroke = 2 * area / max(1, int(outlines[label]))
        touch = touches[label] / max(1, int(outlines[label]))
        support = supports[label] / max(1, int(outlines[label]))
        off = np.hypot(
            (rows.start + rows.stop) / 2 / height - 0.5,
            (columns.start + columns.stop) / 2 / width - 0.5,
        )
        level = sums[label] / area
        likeness = (
            min(1.0, (0.22 * size / stroke) ** 3)  # a blob is no stroke
            * (slimness(labels[rows, columns] == label) if len(parts) < 5 else 1.0)
            * support**2
            * (1 - 0.6 * off)
            * (1 - min(0.9, 4 * touch))
            * min(1.0, level) ** 0.5
        )
        parts.append(
            Part(
                int(label), rows.start, columns.start, rows.stop, columns.stop, area, stroke,
                float(touch), float(level), float(likeness), (size + area**0.5) / longer,
            )
        )  # fmt: skip
    parts.sort(key=lambda part: -part.score)
    return labels, parts


def slimness(mask: NDArray[np.bool_]) -> float:
    """1 for what is made of lines, down to 0.1 for what holds a square of half its size."""
    side = max(mask.shape)
    step = max(1, side // 60)
    small = mask[::step, ::step]
    for share, value in ((0.45, 0.1), (0.36, 0.3), (0.28, 0.7)):
        square = max(2, round(share * side / step))
        if ndimage.minimum_filter(small, square, mode="constant").any():
            return value
    return 1.0


def gap(a: Part, b: Part) -> tuple[int, int]:
    """Distances between two boxes down and across; negative where they overlap."""
    return (
        max(a.top, b.top) - min(a.bottom, b.bottom),
        max(a.left, b.left) - min(a.right, b.right),
    )


def belong(a: Part, b: Part, near: float = NEAR) -> bool:
    """Whether two parts are pieces of one digit.

    Pieces of a broken stroke are near each other; a loose top lies over the rest. Two whole
    digits in a row stand side by side and are equally high.

    Args:
        a: One part.
        b: Another.
        near: How far apart they may be, over the longer side of both together; a third of it where
            they stand side by side.
    """
    down, across = gap(a, b)
    height = max(a.bottom, b.bottom) - min(a.top, b.top)
    width = max(a.right, b.right) - min(a.left, b.left)
    distance = math.hypot(max(down, 0), max(across, 0))
    side_by_side = -down > 0.7 * height and across > 0
    reach = (near / 3 if side_by_side else near) * max(height, width)
    if distance <= reach + 0.5 * min(a.stroke, b.stroke):
        return True
    overlap = -across / max(1, min(a.width, b.width))
    return overlap > 0.5 and down <= 0.3 * height


def group_parts(parts: list[Part], labels: Labels, near: float = NEAR) -> list[Group]:
    """Gather parts into digits, best first, and leave out what is none.

    Args:
        parts: As `find_parts` gives them.
        labels: int32 [h, w], likewise.
        near: See `belong`.
    """
    if not parts:
        return []
    parts = _without_frames(parts, labels)
    best = parts[0]
    real = [
        p
        for p in parts
        if p is best
        or (
            p.area >= 0.02 * best.area
            and p.size >= 0.1 * best.size
            and p.stroke >= 0.3 * best.stroke
            and not (p.touch > 0.12 and p.score < best.score)
        )
    ]
    groups: list[Group] = []
    for part in real:
        joined = [g for g in groups if any(belong(part, q, near) for q in g.parts)]
        merged = Group([part])
        for other in joined:
            merged.parts.extend(other.parts)
            groups.remove(other)
        groups.append(merged)
    groups.sort(key=lambda group: -group.score)
    return groups


def _without_frames(parts: list[Part], labels: Labels) -> list[Part]:
    """Drop printed boxes around the digit: outlines with four straight sides around a good part."""
    height, width = labels.shape
    kept = []
    for part in parts:
        if (
            part.height > 0.5 * height
            and part.width > 0.5 * width
            and part.area < 0.3 * part.height * part.width
            and any(encloses(part, other) for other in parts)
            and _has_four_sides(labels[part.rows, part.columns] == part.label)
        ):
            continue
        kept.append(part)
    return kept


def encloses(outer: Part, inner: Part) -> bool:
    """Whether a part that could be a digit lies within the box of another."""
    return (
        inner.top > outer.top
        and inner.left > outer.left
        and inner.bottom < outer.bottom
        and inner.right < outer.right
        and inner.size > 0.25 * outer.size
    )


def _has_four_sides(mask: NDArray[np.bool_]) -> bool:
    """Whether ink runs along each side of a box, within a sixteenth of its height or width."""
    down, across = max(2, mask.shape[0] // 16), max(2, mask.shape[1] // 16)
    sides = (
        mask[:down].any(axis=0),
        mask[-down:].any(axis=0),
        mask[:, :across].any(axis=1),
        mask[:, -across:].any(axis=1),
    )
    return all(side.mean() > 0.8 for side in sides)
