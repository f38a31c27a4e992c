"""MNIST's format, into which ink is fitted, 20×20 in 28×28; and whether it is a digit.

LeCun, Cortes & Burges, *The MNIST database*: "images from NIST were size normalized to fit in a
20x20 pixel box while preserving their aspect ratio [and] centered in a 28x28 image by computing the
center of mass". What that leaves open was measured on the 60,000 training images, counted from 0:

* The centre of mass lies within half a pixel of row 14 and column 14, spread evenly: images were
  moved by whole pixels, and the "center" is pixel 14, not the middle of the field, 13.5.
* The longer side of the ink is exactly 20 pixels in 59,987 images. Of the shorter one even lengths
  are three to four times as frequent as odd ones, as when the ink is centred in a square first.
* The grey levels are near those of plain area coverage: enlarged fourfold, made bilevel and reduced
  again, an image has 137 pixels of ink, 146 before; by a triangle filter 177, a Lanczos one 193.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_ce.reader.geometry import FloatImage, bounding_box

FIELD_SIZE = 28  # side of an MNIST image, in pixels
BOX_SIZE = 20  # side of the box that the ink is made to fit

# The detector is independent of the weights that classify: new weights need no new threshold.
DETECTOR_FILE = Path(__file__).with_name("detector.npz")
# 3 % of hard digit images and 95 % of noise with any foreground fall below this quality.
MIN_QUALITY = 0.5
# Of 0, 1, 2 and 3: noise rejected 89, 96, 98, 99 %; of 1,854 hard digits 4, 5, 6, 7 (docs/log.md).
QUALITY_PENALTY = 2.0
# Enlarged digits of few pixels have soft edges: without a limit a fifth of UCI's was rejected.
MAX_QUALITY_PENALTY = 2.5


def fit_glyph(ink: FloatImage) -> NDArray[np.uint8]:
    """Return the image, uint8 [28, 28], that MNIST would hold for the ink of one digit.

    The ink, float32 [height, width], is 0 on paper, exactly, and at most 1; else a `ValueError`.
    """
    box = fit_into(crop_to_ink(ink), BOX_SIZE)  # [height, width] → [20, 20]
    field = centre_by_mass(box)  # [20, 20] → [28, 28]
    return np.rint(field * 255).clip(0, 255).astype(np.uint8)


def crop_to_ink(ink: FloatImage) -> FloatImage:
    """Return the smallest rectangle that holds every pixel above 0, as a view."""
    mask = ink > 0
    if not mask.any():
        raise ValueError("there is no ink to crop to")
    return ink[bounding_box(mask).slices()]


def fit_into(ink: FloatImage, size: int) -> FloatImage:
    """Scale ink so that its longer side fills a square and its shorter side is centred.

    float32 [height, width] in [0, 1], cropped to its ink → float32 [size, size] in [0, 1]: means of
    areas when the image gets smaller, and a linear interpolation when it gets larger.
    """
    rows, columns = (_coverage(length, max(ink.shape), size) for length in ink.shape)
    return (rows @ ink @ columns.T).astype(np.float32, copy=False)


def centre_by_mass(ink: FloatImage, size: int = FIELD_SIZE) -> FloatImage:
    """Place ink in a square field so that its centre of mass falls on the field's centre pixel.

    float32 [height, width], neither side longer than `size` → float32 [size, size]. The centre is
    pixel `size / 2`, 14 for MNIST's 28. The ink is moved by whole pixels, and never so far that it
    would be cut off at the field's edge.
    """
    mass = float(ink.sum(dtype=np.float64))
    if mass <= 0:
        raise ValueError("there is no ink to centre")
    starts = []
    for axis, length in enumerate(ink.shape):
        centre = float(ink.sum(axis=1 - axis, dtype=np.float64) @ np.arange(length)) / mass
        start = math.ceil(size / 2 - 0.5 - centre)  # centre + start in [size/2 ± 0.5)
        starts.append(min(max(start, 0), size - length))
    top, left = starts
    field = np.zeros((size, size), dtype=np.float32)
    field[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return field


def _coverage(length: int, longer: int, size: int) -> FloatImage:
    """Return the weights [size, length] of `length` pixels in each of `size` cells.

    The cells divide a stretch of `longer` pixels with the `length` pixels in its middle.
    """
    scale = longer / size
    window = max(scale, 1.0)  # one pixel turns enlarging into linear interpolation
    centres = (np.arange(size) + 0.5) * scale - (longer - length) / 2
    low, high = (centres - window / 2)[:, None], (centres + window / 2)[:, None]
    pixels = np.arange(length)
    overlap = (np.minimum(high, pixels + 1) - np.maximum(low, pixels)).clip(0, 1)
    return np.asarray(overlap / window, dtype=np.float32)


def scale_image(
    image: Image.Image, scale: float, enlarging: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Return an image reduced by averaging areas, or enlarged, so that outlines stay smooth."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else enlarging)


@dataclass(frozen=True)
class DigitDetector:
    """Tells digits from other marks, which a network trained on digits alone takes for some digit.

    `python -m scripts.train_detector` trains it.
    """

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    """Weight [inputs, outputs] and bias [outputs] of each layer: 784 → 384 → 64 → 1."""
    threshold: float  # the lowest score of a digit; at most 1 % of MNIST's digits score less

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the log-odds, float32 [n], that images, uint8 [n, 28, 28], are digits."""
        hidden = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)  # [n, 784]
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0)  # → [n, outputs]
        weight, bias = self.layers[-1]
        scores: NDArray[np.float32] = (hidden @ weight + bias)[:, 0]
        return scores


def adjusted_threshold(threshold: float, foreground_quality: float) -> float:
    """Return the score required of a digit: higher than `threshold` below `MIN_QUALITY`."""
    shortfall = max(0.0, math.log(MIN_QUALITY / max(foreground_quality, 1e-9)))
    return threshold + min(QUALITY_PENALTY * shortfall, MAX_QUALITY_PENALTY)


@cache
def load_detector() -> DigitDetector:
    with np.load(DETECTOR_FILE, allow_pickle=False) as content:
        arrays = {name: content[name].astype(np.float32) for name in content.files}
        threshold = float(arrays.pop("threshold"))
    numbers = range(len(arrays) // 2)
    layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in numbers)
    return DigitDetector(layers, threshold)
