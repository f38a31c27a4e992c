"""Pictures that need no search for ink: 28×28 already, or not of digits at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_ce.data.mnist_format import BOX_SIZE, FIELD_SIZE
from mnist_ce.reader.image_io import deep_to_unit, has_transparency, is_deep

__all__ = ["as_it_is", "whole_picture"]

DIRT = 40  # of 255: what JPEG leaves on black
SHORTEST = 13  # pixels above DIRT; 14 in a training image with a faint tail
MOST_OF_BORDER = 0.2  # may be ink: a digit centred by mass can reach it


def as_it_is(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the glyph of a picture that is one already: 28×28, light on black or the inverse.

    Its ink must lie as MNIST's lies, about 20 pixels long and centred by mass; all 60,000 training
    images do, with room to spare. A drawing on a grid of 28×28 need not, and is treated like any
    other picture.

    Returns:
        uint8 [28, 28], the very pixels (or 255 minus them); None where it is no such picture.
    """
    if image.size != (FIELD_SIZE, FIELD_SIZE) or image.mode not in ("1", "L", "P", "RGB"):
        return None
    if "transparency" in image.info:
        return None
    if image.mode in ("P", "RGB"):
        colours = np.asarray(image.convert("RGB"))
        if np.any(colours != colours[..., :1]):
            return None
    pixels = np.asarray(image.convert("L"))
    for glyph in (pixels, 255 - pixels):
        border = np.concatenate([glyph[0], glyph[-1], glyph[:, 0], glyph[:, -1]])
        if (border > DIRT).mean() > MOST_OF_BORDER:
            continue
        ink = np.where(glyph > DIRT, glyph, 0)
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        if rows.size == 0:
            continue
        longer = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
        y, x = ndimage.center_of_mass(ink)
        middle = FIELD_SIZE / 2
        if SHORTEST <= longer <= BOX_SIZE + 2 and abs(y - middle) < 2 and abs(x - middle) < 2:
            return np.ascontiguousarray(glyph)
    return None


def whole_picture(image: Image.Image) -> NDArray[np.uint8]:
    """Return the whole picture at 28×28, for networks that look at other things than digits.

    28×28 is taken as it is; anything else is made grey, fitted into the square, and inverted where
    its border is bright, as these data sets are bright on black.

    Returns:
        uint8 [28, 28].
    """
    if is_deep(image):
        image = Image.fromarray((deep_to_unit(image) * 255).round().astype(np.uint8))
    if has_transparency(image):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    grey = image.convert("L")
    if grey.size == (FIELD_SIZE, FIELD_SIZE):
        return np.asarray(grey)
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    smaller = max(grey.size) > FIELD_SIZE
    square = ImageOps.pad(
        ImageOps.invert(grey) if float(np.median(border)) > 127 else grey,
        (FIELD_SIZE, FIELD_SIZE),
        method=Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC,
        color=0,
    )
    return np.asarray(square)
