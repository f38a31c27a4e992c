from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mnist_ce.data.splits import Split
from mnist_ce.data.upstrokes import add_upstroke, add_upstrokes
from mnist_ce.reader.mnist_format import fit_glyph
from mnist_ce.system.errors import UsageError
from mnist_ce.training.trainer import train


def upright(width: int = 3) -> np.ndarray:
    ink = np.zeros((40, 40), np.float32)
    ink[5:35, 20 : 20 + width] = 1
    return fit_glyph(ink)


@pytest.mark.parametrize("seed", range(5))
def test_an_upstroke_goes_down_and_left_from_the_top(seed: int) -> None:
    one = upright()
    written = add_upstroke(one, np.random.default_rng(seed))
    assert (written.shape, written.dtype) == (one.shape, one.dtype)

    def mean_width(image: np.ndarray, rows: slice) -> float:
        inked = np.flatnonzero(image.max(axis=1) > 127)
        return float((image[inked[0] : inked[-1] + 1][rows] > 127).sum(axis=1).mean())

    upper, lower = slice(0, 10), slice(-6, None)
    assert mean_width(written, upper) > 1.2 * mean_width(one, upper)
    assert mean_width(written, lower) <= mean_width(one, lower) + 1  # the shaft is as it was
    stem = np.flatnonzero(written[18:23].max(axis=0) > 127)
    columns = np.flatnonzero(written.max(axis=0) > 127)
    assert columns[0] < stem[0]  # the upstroke is to the left,
    assert columns[-1] <= stem[-1] + 1  # and nothing to the right
    for other in (upright(width=20), np.zeros((28, 28), np.uint8)):  # no plain strokes
        assert (add_upstroke(other, np.random.default_rng(seed)) == other).all()


def test_only_the_share_of_the_ones_changes() -> None:
    images = torch.from_numpy(np.stack([upright()] * 400))
    split = Split(images.clone(), torch.arange(400) % 2)
    changed = add_upstrokes(split, 1, 0.25, seed=0)
    assert torch.equal(split.images, images)  # the data stays
    differs = (changed.images != images).flatten(1).any(dim=1)
    assert not differs[::2].any()
    assert 0.15 < differs[1::2].float().mean() < 0.35
    assert torch.equal(changed.images, add_upstrokes(split, 1, 0.25, seed=0).images)
    assert not torch.equal(changed.images, add_upstrokes(split, 1, 0.25, seed=1).images)


def test_upstrokes_need_a_class_called_1(small_settings: dict[str, Any]) -> None:
    settings = {**small_settings, "augment.upstroke_ones": 0.5}
    assert train(None, settings).record["epochs_done"] == 2
    with pytest.raises(UsageError, match="no class is called 1"):
        train(None, {**settings, "data.classes": [0, 2]})
