"""MNIST's format: normalisation, images that have it already, and the detector of non-digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from generators import handwriting_styles, letters
from mnist_ce import evaluate
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.extra import thin_copy
from mnist_ce.data.synthetic import generate
from mnist_ce.reader.components import normalise_stroke_width
from mnist_ce.reader.mnist_format import (
    MAX_QUALITY_PENALTY,
    MIN_QUALITY,
    adjusted_threshold,
    centre_by_mass,
    crop_to_ink,
    fit_glyph,
    fit_into,
    load_detector,
)
from mnist_ce.reader.pixels import as_mnist_image, resize_to_mnist
from mnist_ce.reader.segmentation import hypotheses


def blob(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Ink of every grey level, with ink in every row and column of the border."""
    return np.random.default_rng(seed).uniform(0.2, 1, (height, width)).astype(np.float32)


def test_the_rectangle_of_the_ink_is_kept_and_a_blank_page_refused() -> None:
    page = np.zeros((30, 40), np.float32)
    for step in (crop_to_ink, centre_by_mass, fit_glyph):
        with pytest.raises(ValueError, match="no ink"):
            step(page)
    page[5:12, 20:23] = blob(7, 3)
    np.testing.assert_array_equal(crop_to_ink(page), blob(7, 3))


def test_reducing_takes_means_and_keeps_the_fraction_of_ink() -> None:
    ink = blob(60, 60)
    means = ink.reshape(20, 3, 20, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fit_into(ink, 20), means, rtol=1e-5)
    odd = blob(57, 33)
    assert fit_into(odd, 20).sum() / 20**2 == pytest.approx(odd.sum() / 57**2, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 5))
def test_a_glyph_is_20_pixels_long_and_its_centre_of_mass_on_pixel_14(
    height: int, width: int, seed: int
) -> None:
    ink = blob(height, width, seed)
    sides = crop_to_ink(fit_into(ink, 20)).shape
    scale = 20 / max(height, width)
    assert max(sides) == 20
    # Partly covered pixels count too, and enlarging spreads the ink over one more.
    assert scale * min(ink.shape) - 0.01 <= min(sides) < scale * (min(ink.shape) + 1) + 3
    image = fit_glyph(ink)
    assert (image.shape, image.dtype) == ((28, 28), np.dtype(np.uint8))
    for axis in (0, 1):
        centre = np.average(np.indices((28, 28))[axis], weights=image)
        assert 13.48 <= centre < 14.52  # the width of the rounding to uint8, as in MNIST itself


def test_lopsided_ink_is_not_cut_off() -> None:
    ink = np.full((100, 100), 1e-3, np.float32)
    ink[:5, :5] = 1  # the centre of mass asks for a move that would push the rest out
    assert centre_by_mass(fit_into(ink, 20)).sum() == pytest.approx(fit_into(ink, 20).sum())


@pytest.mark.parametrize("width", [1, 3, 20, 40])
def test_strokes_get_a_usual_width(width: int) -> None:
    ring = Image.new("L", (300, 300))
    ImageDraw.Draw(ring).ellipse([20, 20, 280, 280], outline=255, width=width)
    intensity = (np.asarray(ring) / 255).astype(np.float32)
    mask = normalise_stroke_width(intensity[20:281, 20:281]) > 0.5
    stroke_width = 4 * ndimage.distance_transform_edt(mask)[mask].mean() - 2
    unit = max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) / 20
    assert 1.6 < stroke_width / unit < 3.7


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


@pytest.mark.slow
def test_the_detector_accepts_digits_and_rejects_letters(mnist_dir: Path) -> None:
    detector = load_detector()

    def rejected(images: NDArray[np.uint8]) -> float:
        return float((detector.scores(images) < detector.threshold).mean())

    assert 0 < rejected(load_dataset("mnist", mnist_dir).test.images.numpy()) <= 0.01
    drawn = generate(300, seed=6, styles="world").images.numpy()
    assert rejected(np.stack([thin_copy(image, 1.8, 12) for image in drawn])) <= 0.05
    hand_drawn = []
    for number, glyph in enumerate(letters.GLYPHS):
        image = letters.draw(
            glyph, handwriting_styles.PENS[number % 2], np.random.default_rng(number)
        )
        hand_drawn.append(hypotheses(image)[0].digits[0].pixels)
    assert rejected(np.stack(hand_drawn)) >= 0.75


def test_the_shipped_weights_get_9954_of_10000_test_images_right(mnist_dir: Path) -> None:
    report = evaluate("mnist", data_dir=mnist_dir)
    assert (report.result.num_correct, report.result.num_examples) == (9_954, 10_000)
