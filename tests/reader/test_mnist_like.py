"""MNIST's format, the shipped weights, and the detector of what is no digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generators import hands, letters
from mnist_ce import evaluate
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.extra import thin_copy
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader.detector import (
    MAX_QUALITY_PENALTY,
    MIN_QUALITY,
    adjusted_threshold,
    load_detector,
)
from mnist_ce.reader.mnist_like import as_mnist_image, resize_to_mnist
from mnist_ce.reader.segmentation import hypotheses


@pytest.mark.slow
def test_every_training_image_of_mnist_keeps_its_pixels(mnist_dir: Path) -> None:
    for image in load_dataset("mnist", mnist_dir).train.images.numpy():
        pixels = as_mnist_image(Image.fromarray(image))
        assert pixels is not None
        assert (pixels == image).all()


@pytest.mark.parametrize("peak", [20, 58, 150])
def test_a_dim_image_is_stretched(peak: int) -> None:
    for image in generate(5, seed=5).images.numpy():
        dim = (image * (peak / image.max())).round().astype(np.uint8)
        stretched = as_mnist_image(Image.fromarray(dim))
        assert stretched is not None
        np.testing.assert_allclose(stretched, image * (255 / image.max()), atol=255 / peak)


def test_whole_images_are_only_resized_and_inverted() -> None:
    image = generate(1, seed=5).images.numpy()[0]
    np.testing.assert_array_equal(resize_to_mnist(Image.fromarray(image)), image)
    bright = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.NEAREST)
    deep = Image.fromarray(image.astype(np.uint16) * 257)
    for other in (bright, deep):
        np.testing.assert_allclose(resize_to_mnist(other), image, atol=1)


def test_low_quality_raises_the_threshold() -> None:
    assert adjusted_threshold(-1.5, 1.0) == adjusted_threshold(-1.5, MIN_QUALITY) == -1.5
    thresholds = [adjusted_threshold(-1.5, quality) for quality in (0.5, 0.4, 0.3, 0.0)]
    assert thresholds == sorted(set(thresholds))
    assert thresholds[-1] == adjusted_threshold(-1.5, 0.01) == -1.5 + MAX_QUALITY_PENALTY


def test_at_most_one_percent_of_the_test_digits_of_mnist_are_rejected(mnist_dir: Path) -> None:
    images = load_dataset("mnist", mnist_dir).test.images.numpy()
    detector = load_detector()
    rejected = detector.scores(images) < detector.threshold
    assert 0 < rejected.mean() <= 0.01


def test_digits_of_thin_strokes_and_few_pixels_are_accepted() -> None:
    images = generate(300, seed=6, styles="hands").images.numpy()
    thin = np.stack([thin_copy(image, 1.8, 12) for image in images])
    detector = load_detector()
    assert (detector.scores(thin) < detector.threshold).mean() <= 0.05


def test_hand_drawn_letters_are_rejected() -> None:
    images = []
    for number, glyph in enumerate(letters.GLYPHS):
        image = letters.draw(glyph, hands.PENS[number % 2], np.random.default_rng(number))
        images.append(hypotheses(image)[0].digits[0].pixels)
    detector = load_detector()
    assert (detector.scores(np.stack(images)) < detector.threshold).mean() >= 0.75


def test_the_shipped_weights_get_9954_of_10000_test_images_right(mnist_dir: Path) -> None:
    report = evaluate("mnist", data_dir=mnist_dir)
    assert (report.result.num_correct, report.result.num_examples) == (9_954, 10_000)
