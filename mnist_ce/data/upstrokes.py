"""Upstrokes on ones, as European hands write them; MNIST, an American set, has few."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ce.data.splits import Split
from mnist_ce.reader.mnist_format import fit_glyph
from mnist_ce.system.device import derived_generator

MARGIN = 8  # columns added on the left, for upstrokes that would leave the image
ANGLES = (20.0, 65.0)  # degrees below the horizontal; a flatter stroke makes a 7
LENGTHS = (0.2, 0.3)  # of the digit's height
EXTRA_LENGTH = 0.2  # more for the longest, the steeper it is
MAX_STROKE_WIDTH = 7.0  # pixels; with wider ink it is no plain 1
MIN_HEIGHT = 12  # pixels


def add_upstrokes(train: Split, label: int, share: float, seed: int) -> Split:
    """Draw an upstroke on each image of a label, the ones, with probability `share`.

    Which ones and which upstrokes depends on `seed` alone.
    """
    generator = derived_generator(seed, "flags")
    ones = torch.nonzero(train.labels == label).flatten()
    chosen = ones[torch.rand(len(ones), generator=generator) < share]
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    images = train.images.clone()
    for index in chosen.tolist():
        images[index] = torch.from_numpy(add_upstroke(images[index].numpy(), numbers))
    return Split(images, train.labels)


def add_upstroke(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a 1 with a stroke from its top down to the left, fitted as MNIST fits its digits.

    uint8 [28, 28] → uint8 [28, 28]; the image itself where its ink is no plain upright stroke.
    """
    ink = image.astype(np.float32) / 255
    widths = ink.sum(axis=1)  # of the ink in each row, in pixels
    rows = np.flatnonzero(ink.max(axis=1) > 0.5)
    if len(rows) == 0:
        return image
    top, height, width = rows[0], rows[-1] - rows[0] + 1, float(np.median(widths[rows]))
    if height < MIN_HEIGHT or width > MAX_STROKE_WIDTH:
        return image
    angle = math.radians(random.uniform(*ANGLES))
    length = height * random.uniform(LENGTHS[0], LENGTHS[1] + EXTRA_LENGTH * math.sin(angle))
    left, down = -length * math.cos(angle), length * math.sin(angle)
    columns = np.arange(ink.shape[1])
    start_x = float((ink[top + 1] * columns).sum() / max(widths[top + 1], 1e-6)) + MARGIN
    start_y = top + width / 2
    ink = np.pad(ink, ((0, 0), (MARGIN, 0)))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    # The nearest point of the stroke, 0 at its start, 1 at its end.
    along = (((x - start_x) * left + (y - start_y) * down) / length**2).clip(0, 1)
    distance = np.hypot(x - start_x - along * left, y - start_y - along * down)
    stroke_width = max(1.6, width * random.uniform(0.7, 1.0))
    stroke = (stroke_width / 2 + 0.5 - distance).clip(0, 1)  # antialiased over one pixel
    return fit_glyph(np.maximum(ink, stroke).astype(np.float32))
