"""Pixels of a decoded image: floats at working size, or 28×28 where MNIST's format is wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_ce.reader.geometry import FloatImage, bounding_box
from mnist_ce.reader.mnist_format import BOX_SIZE, FIELD_SIZE, scale_image

MAX_SIDE_PX = 1000  # a digit 5 % as high as such an image still has 50 pixels
MIN_SIDE_PX = 80  # smaller images are enlarged, so that every stage has pixels to work with
FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # of floats and of 8 to 16 bits
MAX_BACKGROUND_LEVEL = 40  # of 255: JPEG noise on black
MIN_PEAK_LEVEL = 190  # a dimmer image is stretched; no brightest pixel of MNIST is as low
MIN_STRETCHED_LEVEL = 12  # below it an image is empty but for noise
MIN_LENGTH_PX = 13  # above that level; 14 in a training image with a faint tail
MAX_BORDER_FRACTION = 0.2  # of the border may be foreground: a centred digit can reach it


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in RGB, as a person sees it: on white where it is transparent."""
    visible = image
    if is_deep(image):
        visible = Image.fromarray((255 * deep_to_unit(image)).round().astype(np.uint8))
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(visible.convert("RGBA"))
    rgb = page.convert("RGB")
    rgb.info["full_size"] = image.info.get("full_size", image.size)
    return rgb


def to_float_image(image: Image.Image) -> FloatImage:
    """Return a decoded image of any mode at working size, with transparency resolved.

    float32 [height, width, 3], or [height, width, 1] if it has no colour; 0 is black, 1 white.
    """
    if has_transparency(image):
        return resolve_transparency(_resized_pixels(image.convert("RGBA")))
    if is_deep(image):
        deep = Image.fromarray(deep_to_unit(image))
        return np.asarray(_resize(deep), dtype=np.float32)[..., None].clip(0, 1)
    if image.mode in ("1", "L"):
        return _resized_pixels(image.convert("L"))[..., None]
    return _without_equal_channels(_resized_pixels(image.convert("RGB")))


def _resized_pixels(image: Image.Image) -> FloatImage:
    return np.asarray(_resize(image), dtype=np.float32) / np.float32(255)


def _without_equal_channels(pixels: FloatImage) -> FloatImage:
    return pixels if np.any(np.ptp(pixels, axis=2)) else pixels[..., :1]


def _resize(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if MIN_SIDE_PX <= longer <= MAX_SIDE_PX:
        return image
    scale = (MAX_SIDE_PX if longer > MAX_SIDE_PX else MIN_SIDE_PX) / longer
    if image.mode == "RGBA":
        return scale_image(image.convert("RGBa"), scale).convert("RGBA")
    return scale_image(image, scale)


def has_transparency(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa", "RGBA")


def is_deep(image: Image.Image) -> bool:  # more than 8 bits per channel
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def deep_to_unit(image: Image.Image) -> NDArray[np.float32]:
    """Return 16- or 32-bit values in [0, 1], float32, by the smallest full scale above them."""
    values = np.asarray(image, dtype=np.float64)  # float32 would overflow at the ends of its range
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0:
        values = (values - low) / max(high - low, 1e-6)
    else:
        values = values / next((scale for scale in FULL_SCALES if high <= scale), high)
    return values.astype(np.float32)


def resolve_transparency(rgba: FloatImage) -> FloatImage:
    """Resolve transparency: [height, width, 4] → [height, width, 1 or 3], in [0, 1].

    Where the visible parts have one colour, the drawing is the alpha channel itself and becomes
    dark on light; else it is in the colours, and transparent parts take their median.
    """
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if float(alpha.min()) > 0.98:
        return _without_equal_channels(colours)
    solid, covered = alpha > 0.5, (alpha > 0.5).mean()
    spread = float(colours[solid].std(axis=0).max()) if solid.any() else 0.0
    # Strokes cover less than half of an image, often less than 30 %, and may vary in colour; where
    # more is covered, only a flat colour leaves the drawing to the alpha channel.
    if (covered < 0.3 or spread < 0.25) if covered < 0.5 else spread < 0.03:
        return (1 - alpha)[..., None]
    fill = np.median(colours[solid], axis=0)
    return colours * alpha[..., None] + fill * (1 - alpha[..., None])


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
        if is_centred and MIN_LENGTH_PX <= bounding_box(foreground > 0).size <= BOX_SIZE + 2:
            return np.ascontiguousarray(pixels)
    return None


def resize_to_mnist(image: Image.Image) -> NDArray[np.uint8]:
    """Return the whole image at 28×28, for networks that classify other things than digits.

    A 28×28 image keeps its pixels; any other is made gray, padded to a square, resized, and
    inverted where its border is bright, since these datasets are bright on black.
    """
    gray = to_rgb(image).convert("L")
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
