"""From an image to its foreground and components."""

from __future__ import annotations

import numpy as np
import pytest

from mnist_ce.reader.binarize import (
    correct_illumination,
    detect_polarity,
    segment_foreground,
    to_grayscale_pca,
)
from mnist_ce.reader.components import find_components


def test_correction_removes_a_slope_and_keeps_the_foreground() -> None:
    gray = np.linspace(0.4, 0.9, 100, dtype=np.float32)[None].repeat(80, 0)
    gray[30:50, 45:50] *= 0.3
    even = correct_illumination(gray)
    assert np.delete(even, np.s_[45:50], axis=1).std() < 0.02
    assert even[40, 47] < 0.4


@pytest.mark.parametrize(("back", "front"), [(0.9, 0.2), (0.1, 0.8)])
def test_polarity_and_foreground_of_one_stroke(back: float, front: float) -> None:
    gray = np.full((100, 100), back, np.float32)
    gray[20:80, 45:52] = front
    assert detect_polarity(gray) is (back > front)
    foreground = segment_foreground(gray, back > front)
    assert foreground is not None
    assert foreground.mask[50, 48]
    assert not foreground.mask[50, 20]
    assert len(find_components(foreground)[1]) == 1


def test_luma_is_kept_where_colours_add_nothing() -> None:
    gray = np.ones((240, 240), np.float32)
    gray[60:180, 110:122] = gray[60:72, 90:140] = 0.1
    mixed = to_grayscale_pca(np.stack([gray] * 3, axis=-1))
    np.testing.assert_allclose(mixed, gray, atol=1e-5)
