"""Training that starts from given weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce import train
from mnist_ce.network.model import MLP
from mnist_ce.runs.checkpoint import read_weights, weights_sha256
from mnist_ce.system.errors import CheckpointError, UsageError
from mnist_ce.training.callbacks import Callback, TrainResult


@pytest.fixture
def base(small_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run that starts from `start.pt`."""
    torch.manual_seed(3)
    torch.save(MLP([24, 16]).state_dict(), tmp_path / "start.pt")
    return {**small_settings, "train.init": str(tmp_path / "start.pt")}


def test_training_starts_from_the_weights_and_records_them(
    base: dict[str, Any], tmp_path: Path
) -> None:
    start = read_weights(tmp_path / "start.pt")[0]
    still = train(None, base | {"optimizer.learning_rate": 1e-20})
    assert still.record.init == {
        "checkpoint": base["train.init"],
        "weights_sha256": weights_sha256(start),
    }
    assert still.record.weights_sha256 == weights_sha256(start)
    again = train(None, base | {"train.seed": 1, "optimizer.learning_rate": 1e-20})
    assert again.record.weights_sha256 == weights_sha256(start)  # whatever the seed


def test_a_run_or_shipped_weights_can_be_named(train_small: Callable[..., TrainResult]) -> None:
    first = train_small("first")
    second = train_small("second", train__init="first")
    origin = {"checkpoint": "first", "weights_sha256": first.record.weights_sha256}
    assert second.record.init == origin
    assert second.rows[0]["train_loss"] < first.rows[0]["train_loss"]
    hidden = [520, 320, 240, 120]
    shipped = train_small("shipped", train__init="mnist", model__hidden=hidden)
    assert shipped.rows[0]["train_loss"] < second.rows[0]["train_loss"]


def test_resuming_does_not_need_the_file_again(base: dict[str, Any], tmp_path: Path) -> None:
    class Killed(Callback):
        def on_start(self, info: object) -> None:
            raise KeyboardInterrupt

    expected = train(None, base)
    with pytest.raises(KeyboardInterrupt):
        train(None, base | {"run.name": "a"}, callbacks=[Killed()])
    (tmp_path / "start.pt").unlink()
    found = train(None, {"run.output": str(tmp_path)}, resume="a")
    assert found.record.weights_sha256 == expected.record.weights_sha256
    assert found.record.init == expected.record.init


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"model.hidden": [24]},
            UsageError,
            "is a network 784→24→16→10, but this run's is 784→24→10: see model.hidden",
        ),
        ({"objective.kind": "binary"}, UsageError, "but this run's is 784→24→16→1"),
        ({"train.init": "gone"}, CheckpointError, "checkpoint gone is neither a file"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    base: dict[str, Any],
    tmp_path: Path,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(None, base | settings)
    assert [path.name for path in tmp_path.iterdir()] == ["start.pt"]
