from __future__ import annotations

from pathlib import Path

import pytest

from mnist_ce import train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_classic_recipe_on_real_mnist(mnist_dir: Path, tmp_path: Path, seed: int) -> None:
    settings = {"data.dir": str(mnist_dir), "data.dataset": "mnist", "train.seed": seed}
    result = train(None, {**settings, "run.output": str(tmp_path)})
    assert 0.962 <= result.record["test_accuracy"] <= 0.974
