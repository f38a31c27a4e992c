"""Connected components of the foreground, which of them form a digit, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_ce.reader.binarize import Foreground
from mnist_ce.reader.geometry import Box, FloatImage, Labels, Mask, bounding_box, union
from mnist_ce.reader.mnist_format import BOX_SIZE, fit_glyph, scale_image

MAX_COMPONENTS = 400  # the largest ones; bounds the time for noise
MIN_AREA_PX = 4  # of a component; a smaller one has no width of stroke to judge
# Of the longer side: a wider stroke lowers the score. The widest 5 % of MNIST's strokes are wider
# than 3.5 of 20 pixels, 0.18.
MAX_STROKE_FRACTION = 0.22
MAX_GAP_FRACTION = 0.12  # between pieces of a broken digit, of the longer side of both together

# The strokes of a digit, taken out of the foreground and brought to a usual width.
WORK_SIDE_PX = 64  # about three pixels per pixel of the result
# In pixels of the 20×20 box. Over MNIST's training images the 5, 25, 50, 75 and 95 % points of the
# stroke width, measured in this way, are 1.6, 2.1, 2.4, 2.8 and 3.5.
MIN_STROKE_PX, MAX_STROKE_PX = 1.75, 2.95
MAX_INTENSITY = 1.2  # the darkest spots of a stroke are no thicker than the rest


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
    edge = foreground.mask & ~ndimage.binary_erosion(foreground.mask)
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
        # Each factor lowers the score for one kind of clutter: blobs (a stroke is long for its
        # width), soft shadows (their edges are not sharp; twice, as they are larger than a digit),
        # what runs along the border (by 0.9 from a quarter of the outline on), and what is fainter.
        stroke_score = (
            min(1.0, (MAX_STROKE_FRACTION * box.size / stroke_width) ** 3)
            * sharpness[label] ** 2
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


def group_components(components: list[Component], max_gap: float) -> list[DigitCandidate]:
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


def glyph_of(
    intensity: FloatImage, labels: Labels, wanted: list[int], box: Box
) -> NDArray[np.uint8]:
    """Return the labels in a box in MNIST's format, with strokes of a usual width."""
    where = box.slices(2)
    # One pixel around the mask keeps the soft rim of the strokes, but not of other digits.
    labels = labels[where]
    mask = np.isin(labels, wanted)
    near = ndimage.maximum_filter(mask, 3) & (mask | (labels == 0))
    strokes = np.where(near, intensity[where], 0).clip(0, MAX_INTENSITY)
    return fit_glyph(normalise_stroke_width(strokes))


def normalise_stroke_width(
    intensity: FloatImage, narrowest: float = MIN_STROKE_PX, widest: float = MAX_STROKE_PX
) -> FloatImage:
    """Return a digit on a grid of about `WORK_SIDE_PX` with strokes of a usual width.

    Strokes out of the usual range are moved to its nearest end by shifting the outline along the
    distance to it, which keeps the middle of every stroke in place. The digit is cropped, float32
    [h, w], 0 outside it; so is the result, in [0, 1].
    """
    longer, extra = max(intensity.shape), 0
    # A stroke much thinner than a pixel of the work grid would fade when reduced: widen it first.
    if longer > WORK_SIDE_PX:
        mask = intensity > 0.5
        width = 2 * mask.sum() / max(1, (mask & ~ndimage.binary_erosion(mask)).sum())
        extra = max(0, int(np.ceil(3 * longer / WORK_SIDE_PX - width)))
        if extra:
            intensity = ndimage.maximum_filter(np.pad(intensity, extra), size=extra + 1)
            longer = max(intensity.shape)
    image = Image.fromarray(intensity.clip(0, MAX_INTENSITY).astype(np.float32))
    fine = np.pad(np.asarray(scale_image(image, WORK_SIDE_PX / longer)), 2)
    mask = fine > 0.5
    if not mask.any():
        return np.asarray((fine / fine.max()).clip(0, 1), dtype=np.float32)
    inside = ndimage.distance_transform_edt(mask)
    # Across a bar of w pixels the distances 1, 2 … 2, 1 have a mean of about (w + 2) / 4.
    now = 4 * float(inside[mask].mean()) - 2
    box = bounding_box(mask).size
    target = min(max(now / (box / BOX_SIZE), narrowest), widest)
    # Moving the outline by r changes the box too: (now + 2r) : (box + 2r) = target : 20.
    shift = (target * box - BOX_SIZE * now) / (2 * (BOX_SIZE - target))
    # Less than a twentieth of a pixel of the result: the grey levels stay as they are, but for the
    # faint halo of enlarging.
    if abs(shift) < 0.15 and not extra:
        return np.where(fine > 0.15, fine, 0).clip(0, 1).astype(np.float32)
    pad = int(max(0.0, shift)) + 2
    mask, inside = np.pad(mask, pad), np.pad(inside, pad)
    distance = np.where(mask, inside - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))
    soft: FloatImage = (distance + shift + 0.5).clip(0, 1).astype(np.float32)
    # Strokes of very different widths: thinning the wide ones would wipe the narrow ones out.
    return soft if soft.max() > 0.5 else fine.clip(0, 1)
