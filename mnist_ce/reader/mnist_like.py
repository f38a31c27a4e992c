"""Images in MNIST's format: taken as they are, resized, or with strokes of MNIST's width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_ce.data.mnist_format import BOX_SIZE, FIELD_SIZE
from mnist_ce.reader.binarize import Mask, outline
from mnist_ce.reader.image_io import (
    FloatImage,
    deep_to_unit,
    has_transparency,
    is_deep,
    scale_image,
)

MAX_BACKGROUND_LEVEL = 40  # of 255: JPEG noise on black
MIN_PEAK_LEVEL = 190  # a dimmer image is stretched; no brightest pixel of MNIST is as low
MIN_STRETCHED_LEVEL = 12  # below it an image is empty but for noise
MIN_LENGTH_PX = 13  # above that level; 14 in a training image with a faint tail
MAX_BORDER_FRACTION = 0.2  # of the border may be foreground: a centred digit can reach it
WORK_SIDE_PX = 64  # about three pixels per pixel of the result
# In pixels of the 20×20 box. Over MNIST's training images the 5, 25, 50, 75 and 95 % points of the
# stroke width, measured in this way, are 1.6, 2.1, 2.4, 2.8 and 3.5.
MIN_STROKE_PX, MAX_STROKE_PX = 1.75, 2.95


def as_mnist_image(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the pixels of an image that is in MNIST's format already, or its inverse.

    Its foreground must be about 20 pixels long and centred by mass; all 60,000 training images
    pass with room to spare. None for any other image, such as a drawing on a grid of 28×28.
    """
    if image.size != (FIELD_SIZE, FIELD_SIZE) or image.mode not in ("1", "L", "P", "RGB"):
        return None
    colours = np.asarray(image.convert("RGB"))
    if "transparency" in image.info or np.any(colours != colours[..., :1]):
        return None
    gray = np.asarray(image.convert("L"))
    for pixels in (gray, 255 - gray):
        if MIN_STRETCHED_LEVEL <= pixels.max() < MIN_PEAK_LEVEL:
            pixels = (pixels * (255 / pixels.max())).round().astype(np.uint8)
        foreground = np.where(pixels > MAX_BACKGROUND_LEVEL, pixels, 0)
        if (_border(foreground) > 0).mean() > MAX_BORDER_FRACTION or not foreground.any():
            continue
        y, x = ndimage.center_of_mass(foreground)
        is_centred = abs(y - FIELD_SIZE / 2) < 2 and abs(x - FIELD_SIZE / 2) < 2
        if is_centred and MIN_LENGTH_PX <= _longer_side(foreground > 0) <= BOX_SIZE + 2:
            return np.ascontiguousarray(pixels)
    return None


def resize_to_mnist(image: Image.Image) -> NDArray[np.uint8]:
    """Return the whole image at 28×28, for networks that classify other things than digits.

    A 28×28 image keeps its pixels; any other is made gray, padded to a square, resized, and
    inverted where its border is bright, since these datasets are bright on black.
    """
    if is_deep(image):
        image = Image.fromarray((deep_to_unit(image) * 255).round().astype(np.uint8))
    if has_transparency(image):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    gray = image.convert("L")
    pixels = np.asarray(gray)
    if gray.size == (FIELD_SIZE, FIELD_SIZE):
        return pixels
    if float(np.median(_border(pixels))) > 127:
        gray = ImageOps.invert(gray)
    is_larger = max(gray.size) > FIELD_SIZE
    method = Image.Resampling.BOX if is_larger else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.pad(gray, (FIELD_SIZE, FIELD_SIZE), method=method, color=0))


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _longer_side(mask: Mask) -> int:
    return max(int(np.ptp(np.flatnonzero(mask.any(axis)))) for axis in (0, 1)) + 1


def normalise_stroke_width(intensity: FloatImage) -> FloatImage:
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
    image = Image.fromarray(intensity.clip(0, 1.2).astype(np.float32))
    fine = np.pad(np.asarray(scale_image(image, WORK_SIDE_PX / longer)), 2)
    mask = fine > 0.5
    if not mask.any():
        return np.asarray((fine / fine.max()).clip(0, 1), dtype=np.float32)
    inside = ndimage.distance_transform_edt(mask)
    # Across a bar of w pixels the distances 1, 2 … 2, 1 have a mean of about (w + 2) / 4.
    now = 4 * float(inside[mask].mean()) - 2
    box = _longer_side(mask)
    target = min(max(now / (box / BOX_SIZE), MIN_STROKE_PX), MAX_STROKE_PX)
    # Moving the outline by r changes the box too: (now + 2r) : (box + 2r) = target : 20.
    shift = (target * box - BOX_SIZE * now) / (2 * (BOX_SIZE - target))
    if abs(shift) < 0.15 and not extra:
        return np.where(fine > 0.15, fine, 0).clip(0, 1).astype(np.float32)
    pad = int(max(0.0, shift)) + 2
    mask, inside = np.pad(mask, pad), np.pad(inside, pad)
    distance = np.where(mask, inside - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))
    soft: FloatImage = (distance + shift + 0.5).clip(0, 1).astype(np.float32)
    # Strokes of very different widths: thinning the wide ones would wipe the narrow ones out.
    return soft if soft.max() > 0.5 else fine.clip(0, 1)
