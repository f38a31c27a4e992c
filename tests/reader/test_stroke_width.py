"""The width of a digit's strokes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_ce.reader.stroke_width import normalise_stroke_width


def stroke_width(mask: np.ndarray) -> float:
    return float(4 * ndimage.distance_transform_edt(mask)[mask].mean() - 2)


@pytest.mark.parametrize("width", [1, 3, 20, 40])
def test_strokes_get_a_usual_width(width: int) -> None:
    ring = Image.new("L", (300, 300))
    ImageDraw.Draw(ring).ellipse([20, 20, 280, 280], outline=255, width=width)
    intensity = (np.asarray(ring) / 255).astype(np.float32)
    mask = normalise_stroke_width(intensity[20:281, 20:281]) > 0.5
    unit = max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) / 20
    assert 1.6 < stroke_width(mask) / unit < 3.7
