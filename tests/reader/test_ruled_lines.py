"""Printed lines: shearing is undone exactly."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ce.reader.ruled_lines import shear, unshear


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.floats(-0.2, 0.2), st.integers(0, 9))
def test_unshearing_undoes_shearing(height: int, width: int, slope: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    sheared = shear(mask, slope, width / 2)
    assert sheared.sum() == mask.sum()
    np.testing.assert_array_equal(unshear(sheared, slope, width / 2), mask)
