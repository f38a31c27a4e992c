"""Extra training images: own ones repeated beside MNIST's, ones with upstrokes, thin copies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ce.config import DataConfig
from mnist_ce.data.splits import Split
from mnist_ce.reader.mnist_format import crop_to_ink, fit_glyph, fit_into
from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import UsageError

OWN_FRACTION = 0.25  # of the training images of `mnist+…` are one's own; docs/own-data.md compares

THIN_WIDTHS_PX = (1.6, 2.3)  # in MNIST's box of 20 pixels; the reader's narrowest strokes are 1.75
SMALL_HEIGHTS_PX = (7, 12)
SMALL_FRACTION = 0.25  # of the thin copies have few pixels

UPSTROKE_MARGIN = 8  # columns added on the left, for upstrokes that would leave the image
UPSTROKE_ANGLES = (20.0, 65.0)  # degrees below the horizontal; a flatter stroke makes a 7
UPSTROKE_LENGTHS = (0.2, 0.3)  # of the digit's height
EXTRA_LENGTH = 0.2  # more for the longest, the steeper it is
MAX_STROKE_WIDTH = 7.0  # pixels; wider ink is no single stroke
MIN_HEIGHT = 12  # pixels


def add_extras(
    train: Split, data: DataConfig, mnist: Split | None, class_names: Sequence[str], seed: int
) -> Split:
    """Change or add training images, after the validation split: no copy of its images is added.

    Beside `mnist` one's own images are repeated until they are `OWN_FRACTION` of all.
    """
    if mnist is not None:
        num_own = OWN_FRACTION / (1 - OWN_FRACTION) * len(mnist)
        repeats = max(1, round(num_own / max(1, len(train))))
        train = Split.concatenate(mnist, *[train] * repeats)
    if data.upstrokes:
        if "1" not in class_names:
            raise UsageError(f"data.upstrokes = {data.upstrokes}, but no class is called 1")
        train = add_upstrokes(train, class_names.index("1"), data.upstrokes, seed)
    if data.thin_copies:
        train = add_thin_copies(train, data.thin_copies, seed)
    return train


def add_upstrokes(train: Split, label: int, fraction: float, seed: int) -> Split:
    """Draw upstrokes, as Europeans write them and MNIST has few, on a fraction of the ones."""
    generator = derived_generator(seed, "upstrokes")
    ones = torch.nonzero(train.labels == label).flatten()
    chosen = ones[torch.rand(len(ones), generator=generator) < fraction]
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    images = train.images.clone()
    for index in chosen.tolist():
        images[index] = torch.from_numpy(add_upstroke(images[index].numpy(), random))
    return Split(images, train.labels)


def add_upstroke(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a 1, uint8 [28, 28], with an upstroke; where its ink is no upright stroke, the 1."""
    ink = image.astype(np.float32) / 255
    widths = ink.sum(axis=1)  # of the ink in each row, in pixels
    rows = np.flatnonzero(ink.max(axis=1) > 0.5)
    if len(rows) == 0:
        return image
    top, height, width = rows[0], rows[-1] - rows[0] + 1, float(np.median(widths[rows]))
    if height < MIN_HEIGHT or width > MAX_STROKE_WIDTH:
        return image
    angle = math.radians(random.uniform(*UPSTROKE_ANGLES))
    shortest, longest = UPSTROKE_LENGTHS
    length = height * random.uniform(shortest, longest + EXTRA_LENGTH * math.sin(angle))
    left, down = -length * math.cos(angle), length * math.sin(angle)
    columns = np.arange(ink.shape[1])
    # The top row may be one faint pixel: the next one says where the stem begins.
    start_x = float((ink[top + 1] * columns).sum() / max(widths[top + 1], 1e-6)) + UPSTROKE_MARGIN
    start_y = top + width / 2
    ink = np.pad(ink, ((0, 0), (UPSTROKE_MARGIN, 0)))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    # The nearest point of the stroke, 0 at its start, 1 at its end.
    along = (((x - start_x) * left + (y - start_y) * down) / length**2).clip(0, 1)
    distance = np.hypot(x - start_x - along * left, y - start_y - along * down)
    stroke_width = max(1.6, width * random.uniform(0.7, 1.0))
    stroke = (stroke_width / 2 + 0.5 - distance).clip(0, 1)  # antialiased over one pixel
    return fit_glyph(np.maximum(ink, stroke).astype(np.float32))


def add_thin_copies(train: Split, fraction: float, seed: int) -> Split:
    """Add copies of a fraction of the images as the reader gets them from photographs.

    Most are of thin pens, some of few pixels without the finer shapes: MNIST, scanned pencil, holds
    neither.
    """
    generator = derived_generator(seed, "thin_copies")
    chosen = torch.randperm(len(train), generator=generator)[: round(fraction * len(train))]
    low, high = THIN_WIDTHS_PX
    widths = torch.rand(len(chosen), generator=generator) * (high - low) + low
    shortest, tallest = SMALL_HEIGHTS_PX
    heights = torch.randint(shortest, tallest + 1, (len(chosen),), generator=generator)
    heights[torch.rand(len(chosen), generator=generator) >= SMALL_FRACTION] = 0
    copies = train[chosen]
    for image, width, height in zip(
        copies.images.numpy(), widths.tolist(), heights.tolist(), strict=True
    ):
        image[...] = thin_copy(image, width, height or None)
    return Split.concatenate(train, copies)


def thin_copy(
    image: NDArray[np.uint8], width: float, height: int | None = None
) -> NDArray[np.uint8]:
    """Return a digit with strokes of at most `width` pixels, as MNIST fits it, uint8 [28, 28].

    With `height` it first loses what a photograph that shows it so many pixels high does not hold.
    """
    from mnist_ce.reader.components import normalise_stroke_width  # imports SciPy

    if not image.any():
        return image
    intensity = (image / 255).astype(np.float32)
    if height is not None:
        intensity = fit_into(crop_to_ink(intensity), height)
    return fit_glyph(normalise_stroke_width(intensity, 0.0, width))
