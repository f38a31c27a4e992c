"""Connected components of the foreground, and which of them form a digit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.stroke_width import Mask, outline

Labels: TypeAlias = NDArray[np.int32]

MAX_COMPONENTS = 400  # the largest ones; bounds the time for noise
MIN_AREA_PX = 4
MAX_GAP_FRACTION = 0.12  # between pieces of a broken digit, of the longer side of both together


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
    def size(self) -> int:
        """The longer side."""
        return max(self.height, self.width)

    def moved(self, down: int, right: int) -> Box:
        """Return the box moved by so many pixels."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def slices(self, margin: int = 0) -> tuple[slice, slice]:
        """Return the rows and columns of the box and a margin."""
        rows = slice(max(0, self.top - margin), self.bottom + margin)
        return rows, slice(max(0, self.left - margin), self.right + margin)


def bounding_box(mask: Mask) -> Box:
    """Return the box of what is true in a mask [h, w]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def union(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around boxes."""
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


@dataclass(frozen=True)
class Component:
    """One connected component of the foreground."""

    label: int
    box: Box
    area: int  # in pixels
    stroke_width: float  # in pixels: 2 × area / length of the outline
    border_fraction: float  # of the outline, on the image's border
    stroke_score: float  # how much it looks like writing whatever its size, in [0, 1]
    relative_size: float  # (longer side + √area) / longer side of the image

    @property
    def score(self) -> float:
        """How much it looks like (a piece of) the digit that the image shows."""
        return self.stroke_score * self.relative_size


@dataclass(frozen=True)
class DigitCandidate:
    """The components of one digit."""

    components: list[Component]

    @property
    def box(self) -> Box:
        """The bounding box of all components."""
        return union(c.box for c in self.components)

    @property
    def score(self) -> float:
        """The sum of the components' scores."""
        return sum(c.score for c in self.components)

    @property
    def stroke_score(self) -> float:
        """The mean stroke score, weighted by size."""
        return self.score / sum(c.relative_size for c in self.components)


def find_components(foreground: Foreground) -> tuple[Labels, list[Component]]:
    """Return labels [h, w] (8-connected) and components by falling score, without tiny ones."""
    labels, count = ndimage.label(foreground.mask, np.ones((3, 3)))
    if count == 0:
        return labels, []
    height, width = labels.shape
    edge = outline(foreground.mask)
    border = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    n = count + 1
    areas = np.bincount(labels.ravel(), minlength=n)
    outlines = np.maximum(np.bincount(labels[edge], minlength=n), 1)
    border_fractions = np.bincount(border, minlength=n) / outlines
    sharpness = np.bincount(labels[edge], foreground.edges[edge], minlength=n) / outlines
    intensities = np.bincount(labels.ravel(), foreground.intensity.ravel(), minlength=n)
    boxes = ndimage.find_objects(labels)
    components: list[Component] = []
    for label in np.argsort(areas[1:])[::-1][:MAX_COMPONENTS] + 1:
        area = int(areas[label])
        if area < MIN_AREA_PX:
            break
        rows, columns = boxes[label - 1]
        box = Box(rows.start, columns.start, rows.stop, columns.stop)
        stroke_width = 2 * area / int(outlines[label])
        border_fraction = float(border_fractions[label])
        off_centre = np.hypot(
            (box.top + box.bottom) / 2 / height - 0.5, (box.left + box.right) / 2 / width - 0.5
        )
        # Each factor lowers the score for one kind of clutter: blobs (a stroke is long for its
        # width; two measures, the slower one for the five largest), soft shadows (their edges are
        # not sharp), and dirt away from the centre, along the border or fainter than the rest.
        stroke_score = (
            min(1.0, (0.22 * box.size / stroke_width) ** 3)
            * (thinness(labels[rows, columns] == label) if len(components) < 5 else 1.0)
            * sharpness[label] ** 2
            * (1 - 0.6 * off_centre)
            * (1 - min(0.9, 4 * border_fraction))
            * min(1.0, intensities[label] / area) ** 0.5
        )
        relative_size = (box.size + area**0.5) / max(height, width)
        component = Component(
            int(label), box, area, stroke_width, border_fraction, float(stroke_score), relative_size
        )
        components.append(component)
    components.sort(key=lambda component: -component.score)
    return labels, components


def thinness(mask: Mask) -> float:
    """Return 1 for a shape made of lines, down to 0.1 where a square of half its size fits in."""
    side = max(mask.shape)
    step = max(1, side // 60)
    small = mask[::step, ::step]
    for share, value in ((0.45, 0.1), (0.36, 0.3), (0.28, 0.7)):
        square = max(2, round(share * side / step))
        if ndimage.minimum_filter(small, square, mode="constant").any():
            return value
    return 1.0


def group_components(
    components: list[Component], labels: Labels, max_gap: float = MAX_GAP_FRACTION
) -> list[DigitCandidate]:
    """Group the result of `find_components` into candidates, best first, without clutter."""
    if not components:
        return []
    components = [c for c in components if not _is_frame(c, components, labels)]
    best = components[0]
    candidates: list[DigitCandidate] = []
    for component in components:
        # Specks, hairlines, and what runs along the border, such as the edge of a sheet.
        if component is not best and (
            component.area < 0.02 * best.area
            or component.box.size < 0.1 * best.box.size
            or component.stroke_width < 0.3 * best.stroke_width
            or (component.border_fraction > 0.12 and component.score < best.score)
        ):
            continue
        merged, rest = [component], []
        for candidate in candidates:
            if any(same_digit(component, other, max_gap) for other in candidate.components):
                merged.extend(candidate.components)
            else:
                rest.append(candidate)
        candidates = [*rest, DigitCandidate(merged)]
    candidates.sort(key=lambda candidate: -candidate.score)
    return candidates


def same_digit(a: Component, b: Component, max_gap: float = MAX_GAP_FRACTION) -> bool:
    """Return whether two components are pieces of one digit.

    Pieces of a broken stroke are near each other: `max_gap` is a fraction of the longer side of
    both together. A loose top (of a 5) lies over the rest. Digits in a row stand side by side and
    are equally high: for such pairs a third of the gap is allowed.
    """
    down = max(a.box.top, b.box.top) - min(a.box.bottom, b.box.bottom)  # negative: they overlap
    across = max(a.box.left, b.box.left) - min(a.box.right, b.box.right)
    height = max(a.box.bottom, b.box.bottom) - min(a.box.top, b.box.top)
    width = max(a.box.right, b.box.right) - min(a.box.left, b.box.left)
    distance = math.hypot(max(down, 0), max(across, 0))
    side_by_side = -down > 0.7 * height and across > 0
    limit = (max_gap / 3 if side_by_side else max_gap) * max(height, width)
    if distance <= limit + 0.5 * min(a.stroke_width, b.stroke_width):
        return True
    overlap = -across / max(1, min(a.box.width, b.box.width))
    return overlap > 0.5 and down <= 0.3 * height


def _is_frame(component: Component, components: list[Component], labels: Labels) -> bool:
    """Whether a component is a printed box around a digit: large, mostly empty, four sides."""
    (height, width), box = labels.shape, component.box
    return (
        box.height > 0.5 * height
        and box.width > 0.5 * width
        and component.area < 0.3 * box.height * box.width
        and any(contains(box, other.box) for other in components)
        and _has_four_sides(labels[box.slices()] == component.label)
    )


def contains(outer: Box, inner: Box) -> bool:
    """Return whether a box large enough for a digit lies within another."""
    return (
        outer.top < inner.top < inner.bottom < outer.bottom
        and outer.left < inner.left < inner.right < outer.right
        and inner.size > 0.25 * outer.size
    )


def _has_four_sides(mask: Mask) -> bool:
    # A side may be slanted: within a sixteenth of the box counts.
    down, across = max(2, mask.shape[0] // 16), max(2, mask.shape[1] // 16)
    top_and_bottom = mask[:down].any(axis=0), mask[-down:].any(axis=0)
    left_and_right = mask[:, :across].any(axis=1), mask[:, -across:].any(axis=1)
    return all(side.mean() > 0.8 for side in (*top_and_bottom, *left_and_right))
