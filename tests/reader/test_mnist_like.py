"""MNIST's format: images that have it, images resized to it, and the width of strokes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader.mnist_like import as_mnist_image, normalise_stroke_width, resize_to_mnist


@pytest.mark.slow
def test_every_training_image_of_mnist_keeps_its_pixels(mnist_dir: Path) -> None:
    for image in load_dataset("mnist", mnist_dir).train.images.numpy():
        pixels = as_mnist_image(Image.fromarray(image))
        assert pixels is not None
        assert (pixels == image).all()


def stroke_width(mask: NDArray[np.bool_]) -> float:
    return 4 * float(ndimage.distance_transform_edt(mask)[mask].mean()) - 2


@pytest.mark.parametrize("width", [1, 3, 20, 40])
def test_strokes_get_a_usual_width(width: int) -> None:
    ring = Image.new("L", (300, 300))
    ImageDraw.Draw(ring).ellipse([20, 20, 280, 280], outline=255, width=width)
    intensity = (np.asarray(ring) / 255).astype(np.float32)
    strokes = normalise_stroke_width(intensity[20:281, 20:281])
    unit = max(np.ptp(np.flatnonzero((strokes > 0.5).any(a))) + 1 for a in (0, 1)) / 20
    assert 1.6 < stroke_width(strokes > 0.5) / unit < 3.7


def test_whole_images_are_only_resized_and_inverted() -> None:
    image = generate(1, seed=5).images.numpy()[0]
    np.testing.assert_array_equal(resize_to_mnist(Image.fromarray(image)), image)
    bright = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.NEAREST)
    deep = Image.fromarray(image.astype(np.uint16) * 257)
    for other in (bright, deep):
        np.testing.assert_allclose(resize_to_mnist(other), image, atol=1)
