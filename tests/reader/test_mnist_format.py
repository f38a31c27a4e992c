from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mnist_ce.reader.mnist_format import centre_by_mass, crop_to_ink, fit_glyph, fit_into


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


@pytest.mark.parametrize(("height", "width"), [(200, 100), (100, 200), (61, 7), (8, 8), (1, 1)])
def test_the_longer_side_becomes_twenty_pixels(height: int, width: int) -> None:
    box = crop_to_ink(fit_into(blob(height, width), 20))
    assert max(box.shape) == 20
    expected = 20 * min(height, width) / max(height, width)
    assert expected - 0.01 <= min(box.shape) < expected + 3  # partly covered pixels count too


def test_reducing_takes_means_and_keeps_the_share_of_ink() -> None:
    ink = blob(60, 60)
    means = ink.reshape(20, 3, 20, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fit_into(ink, 20), means, rtol=1e-5)
    odd = blob(57, 33)
    assert fit_into(odd, 20).sum() / 20**2 == pytest.approx(odd.sum() / 57**2, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 5))
def test_the_centre_of_mass_is_within_half_a_pixel_of_pixel_14(
    height: int, width: int, seed: int
) -> None:
    image = fit_glyph(blob(height, width, seed))
    assert (image.shape, image.dtype) == ((28, 28), np.dtype(np.uint8))
    for axis in (0, 1):
        centre = np.average(np.indices((28, 28))[axis], weights=image)
        assert 13.48 <= centre < 14.52  # the width of the rounding to uint8, as in MNIST itself


def test_lopsided_ink_is_not_cut_off() -> None:
    ink = np.full((100, 100), 1e-3, np.float32)
    ink[:5, :5] = 1  # the centre of mass asks for a move that would push the rest out
    assert centre_by_mass(fit_into(ink, 20)).sum() == pytest.approx(fit_into(ink, 20).sum())
