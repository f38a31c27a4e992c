"""Bring a digit's lines to the weight that MNIST's have, and cut it out."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_ce.data.mnist_format import BOX_SIZE
from mnist_ce.reader.binarize import Mask, Plane

__all__ = ["normalise_weight", "outline", "stroke_width"]

WORK_SIDE = 64  # about three pixels per pixel of the glyph
# In pixels of the 20×20 box. Over MNIST's training images the 5, 25, 50, 75 and 95 % points of the
# width, measured in this way, are 1.6, 2.1, 2.4, 2.8 and 3.5.
LIGHTEST, HEAVIEST = 1.75, 2.95


def stroke_width(mask: Mask) -> float:
    """The mean width of the lines in a mask, in pixels.

    Across a bar of w pixels the distances to its edge, 1, 2 … 2, 1, have the mean
    (w + 2 + 1/w) / 4.

    Args:
        mask: bool [h, w]; what lies beyond is no ink.
    """
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))
    return 4 * float(inside[inside > 0].mean()) - 2 if mask.any() else 0.0


def outline(mask: Mask) -> Mask:
    """The ink that has paper above, below or beside it; beyond the border is paper."""
    padded = np.pad(mask, 1)
    within = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Mask = mask & ~within
    return edge


def normalise_weight(
    levels: Plane, lightest: float = LIGHTEST, heaviest: float = HEAVIEST
) -> Plane:
    """Return the digit cropped, on a grid of about `WORK_SIDE`, with lines of a usual weight.

    Lines lighter or heavier than usual are moved to the nearest usual weight by shifting the
    outline along the distance to it, which keeps the middle of every line where it is.

    Args:
        levels: float32 [h, w] ink levels of one digit, 0 outside it, cropped.
        lightest: In pixels of MNIST's 20×20 box.
        heaviest: Likewise.

    Returns:
        float32 [h, w] in [0, 1], 0 where there is no ink.
    """
    longer = max(levels.shape)
    mask = levels > 0.5
    # A line much thinner than a pixel of the work grid would fade when reduced: thicken it first.
    extra = 0
    if longer > WORK_SIDE:
        width = 2 * mask.sum() / max(1, outline(mask).sum())
        extra = max(0, int(np.ceil(3 * longer / WORK_SIDE - width)))
        if extra:
            levels = ndimage.maximum_filter(np.pad(levels, extra), size=extra + 1)
            longer = max(levels.shape)
    scale = WORK_SIDE / longer
    size = (max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale)))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    pad = 2
    picture = Image.fromarray(np.pad(levels, 0).clip(0, 1.2).astype(np.float32))
    fine = np.pad(np.asarray(picture.resize(size, method)), pad)
    mask = fine > 0.5
    if not mask.any():
        return np.asarray((fine / fine.max()).clip(0, 1), dtype=np.float32)
    inside = ndimage.distance_transform_edt(mask)
    now = 4 * float(inside[mask].mean()) - 2
    box = max(np.ptp(np.flatnonzero(mask.any(1))), np.ptp(np.flatnonzero(mask.any(0)))) + 1
    unit = box / BOX_SIZE
    target = min(max(now / unit, lightest), heaviest)
    # moving the outline by r changes the box too: (now + 2r) : (box + 2r) = target : 20
    shift = (target * box - BOX_SIZE * now) / (2 * (BOX_SIZE - target))
    if abs(shift) < 0.15 and not extra:
        return np.where(fine > 0.15, fine, 0).clip(0, 1).astype(np.float32)
    room = int(max(0.0, shift)) + 2
    mask = np.pad(mask, room)
    inside = np.pad(inside, room)
    distance = np.where(mask, inside - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))
    soft: Plane = (distance + shift + 0.5).clip(0, 1).astype(np.float32)
    # Lines of very different weights: thinning the heavy ones would wipe the light ones out.
    return soft if soft.max() > 0.5 else fine.clip(0, 1)
