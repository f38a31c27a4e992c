"""Copies of training images as the reader gets them from photographs: thin strokes, few pixels.

Most photographs are of thin pens, and come out of the reader in its narrowest strokes; a digit of a
few pixels has lost its finer shapes. MNIST, scanned forms filled in with pencils, holds neither.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ce.data.splits import Split
from mnist_ce.reader.mnist_format import crop_to_ink, fit_glyph, fit_into
from mnist_ce.reader.stroke_width import normalise_stroke_width
from mnist_ce.system.device import derived_generator

WIDTHS_PX = (1.6, 2.3)  # of strokes in MNIST's box of 20 pixels; the reader's narrowest are 1.75
HEIGHTS_PX = (7, 12)  # of the digits of few pixels
LOW_RESOLUTION = 0.25  # the share of these


def add_photographed(train: Split, share: float, seed: int) -> Split:
    """Add copies of a share of the images, as photographs of them would be read.

    Which images, and how they come out, depends on `seed` alone.
    """
    generator = derived_generator(seed, "photographed")
    chosen = torch.randperm(len(train), generator=generator)[: round(share * len(train))]
    low, high = WIDTHS_PX
    widths = torch.rand(len(chosen), generator=generator) * (high - low) + low
    heights = torch.randint(HEIGHTS_PX[0], HEIGHTS_PX[1] + 1, (len(chosen),), generator=generator)
    heights[torch.rand(len(chosen), generator=generator) >= LOW_RESOLUTION] = 0
    copies = train.images[chosen]
    for copy, width, height in zip(copies.numpy(), widths.tolist(), heights.tolist(), strict=True):
        copy[...] = as_photographed(copy, width, height or None)
    labels = torch.cat([train.labels, train.labels[chosen]])
    return Split(torch.cat([train.images, copies]), labels)


def as_photographed(
    image: NDArray[np.uint8], width: float, height: int | None = None
) -> NDArray[np.uint8]:
    """Return a digit with strokes of at most `width` pixels, as MNIST fits it, uint8 [28, 28].

    With `height` it first loses what a photograph that shows it so many pixels high does not hold.
    """
    if not image.any():
        return image
    intensity = (image / 255).astype(np.float32)
    if height is not None:
        intensity = fit_into(crop_to_ink(intensity), height)
    return fit_glyph(normalise_stroke_width(intensity, 0.0, width))
