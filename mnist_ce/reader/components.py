"""Connected components of the foreground, and which of them form a digit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.geometry import Box, Labels, Mask, outline, union

MAX_COMPONENTS = 400  # the largest ones; bounds the time for noise
MIN_AREA_PX = 4  # of a component; a smaller one has no width of stroke to judge
# Of the longer side: a wider stroke lowers the score. The widest 5 % of MNIST's strokes are wider
# than 3.5 of 20 pixels, 0.18 (stroke_width.py).
MAX_STROKE_FRACTION = 0.22
MAX_GAP_FRACTION = 0.12  # between pieces of a broken digit, of the longer side of both together


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
        return union(c.box for c in self.components)

    @property
    def score(self) -> float:
        return sum(c.score for c in self.components)

    @property
    def stroke_score(self) -> float:
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
        # width), soft shadows (their edges are not sharp), dirt away from the centre
        # (by 0.42 in a corner), along the border (from a quarter of the outline on by 0.9), or
        # fainter than the rest. Sharpness counts twice, since a shadow is larger than the digit.
        stroke_score = (
            min(1.0, (MAX_STROKE_FRACTION * box.size / stroke_width) ** 3)
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


def group_components(
    components: list[Component], max_gap: float = MAX_GAP_FRACTION
) -> list[DigitCandidate]:
    """Group components, the best one first, into candidates, best first, without clutter."""
    near, groups = same_digit(components, max_gap).tolist(), list[list[int]]()  # of numbers
    for number, component in enumerate(components):
        best = components[0]
        # Specks, hairlines, and what runs along the border, such as the edge of a sheet: a stroke
        # five times as long as wide that the border cuts off has a twelfth of its outline there.
        if component is not best and (
            component.area < 0.02 * best.area
            or component.box.size < 0.1 * best.box.size
            or component.stroke_width < 0.3 * best.stroke_width
            or (component.border_fraction > 0.12 and component.score < best.score)
        ):
            continue
        merged, rest = [number], []
        for group in groups:
            if any(near[number][other] for other in group):
                merged.extend(group)
            else:
                rest.append(group)
        groups = [*rest, merged]
    candidates = [DigitCandidate([components[number] for number in group]) for group in groups]
    candidates.sort(key=lambda candidate: -candidate.score)
    return candidates


def same_digit(components: list[Component], max_gap: float) -> Mask:
    """Return for each two components whether they are pieces of one digit, [n, n].

    Pieces of a broken stroke are near each other: `max_gap` is a fraction of the longer side of
    both together. A loose top (of a 5) lies over the rest. Digits in a row stand side by side and
    are equally high: for such pairs a third of the gap is allowed.
    """
    tops, lefts, bottoms, rights = np.array([c.box for c in components]).reshape(-1, 4).T[..., None]
    strokes = np.array([c.stroke_width for c in components])[:, None]
    down = np.maximum(tops, tops.T) - np.minimum(bottoms, bottoms.T)  # negative: they overlap
    across = np.maximum(lefts, lefts.T) - np.minimum(rights, rights.T)
    height = np.maximum(bottoms, bottoms.T) - np.minimum(tops, tops.T)  # of both together
    size = np.maximum(height, np.maximum(rights, rights.T) - np.minimum(lefts, lefts.T))
    distance = np.hypot(np.maximum(down, 0), np.maximum(across, 0))
    side_by_side = (-down > 0.7 * height) & (across > 0)
    limit = np.where(side_by_side, max_gap / 3, max_gap) * size
    is_near = distance <= limit + 0.5 * np.minimum(strokes, strokes.T)
    # A loose top lies over half of the narrower of both; digits of two lines are further apart.
    overlap = -across / np.maximum(1, np.minimum(rights - lefts, (rights - lefts).T))
    same: Mask = is_near | ((overlap > 0.5) & (down <= 0.3 * height))
    return same
