"""Images in MNIST's format: taken as they are, or resized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_ce.reader.image_io import deep_to_unit, has_transparency, is_deep
from mnist_ce.reader.mnist_format import BOX_SIZE, FIELD_SIZE
from mnist_ce.reader.stroke_width import longer_side

MAX_BACKGROUND_LEVEL = 40  # of 255: JPEG noise on black
MIN_PEAK_LEVEL = 190  # a dimmer image is stretched; no brightest pixel of MNIST is as low
MIN_STRETCHED_LEVEL = 12  # below it an image is empty but for noise
MIN_LENGTH_PX = 13  # above that level; 14 in a training image with a faint tail
MAX_BORDER_FRACTION = 0.2  # of the border may be foreground: a centred digit can reach it


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
        if is_centred and MIN_LENGTH_PX <= longer_side(foreground > 0) <= BOX_SIZE + 2:
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
