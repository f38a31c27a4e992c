"""The strokes of a digit: taken out of the foreground, and brought to a usual width."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_ce.reader.geometry import Box, FloatImage, Labels, bounding_box, dilate, outline
from mnist_ce.reader.mnist_format import BOX_SIZE, scale_image

WORK_SIDE_PX = 64  # about three pixels per pixel of the result
# In pixels of the 20×20 box. Over MNIST's training images the 5, 25, 50, 75 and 95 % points of the
# stroke width, measured in this way, are 1.6, 2.1, 2.4, 2.8 and 3.5.
MIN_STROKE_PX, MAX_STROKE_PX = 1.75, 2.95
MAX_INTENSITY = 1.2  # the darkest spots of a stroke are no thicker than the rest


def crop_strokes(intensity: FloatImage, labels: Labels, wanted: list[int], box: Box) -> FloatImage:
    """Return the strokes of the labels in a box with a usual width, float32 [h, w]."""
    where = box.slices(2)
    # One pixel around the mask keeps the soft rim of the strokes, but not of other digits.
    labels = labels[where]
    mask = np.isin(labels, wanted)
    near = dilate(mask) & (mask | (labels == 0))
    return normalise_stroke_width(np.where(near, intensity[where], 0).clip(0, MAX_INTENSITY))


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
        width = 2 * mask.sum() / max(1, outline(mask).sum())
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
