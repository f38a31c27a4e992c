from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.evaluation.comparison import compare
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.report.report import report
from mnist_ce.runs.load_model import load_model
from mnist_ce.system.errors import CheckpointError
from mnist_ce.training.callbacks import TrainResult

pytestmark = pytest.mark.usefixtures("small_data")


@pytest.fixture(scope="module")
def runs(
    train_small_in: Callable[..., TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_small_in(folder, "validated", train__epochs=1, data__validation_size=900)
    drawn = {"data__num_synthetic": 1_500, "data__validation_size": 2_000}
    train_small_in(folder, "drawn", train__epochs=1, **drawn)
    return folder


@pytest.mark.parametrize("name", ["validated", "drawn"])
def test_the_test_images_are_all_that_is_asked_for(runs: Path, name: str) -> None:
    """Neither the validation images nor the drawn ones need to be there."""
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    for number in (1, 3):
        few = (images[:number], torch.arange(number))
        for result in (
            evaluate(name, data=few, output=runs),
            compare(name, "validated", data=few, output=runs).reports[0],
        ):
            assert result.result.num_examples == number
    assert evaluate(name, output=runs).result.num_examples == 1_000
    report([name], output=runs)
    assert (runs / name / "confusion_matrix.png").is_file()


@pytest.mark.parametrize("scale", [{"input_mean": 1e39}, {"input_std": 1e-44}])
def test_logits_too_large_for_a_loss_are_an_error(runs: Path, scale: dict[str, Any]) -> None:
    trained = load_model("validated", runs, **scale)
    with pytest.raises(CheckpointError, match="not finite, or too large"):
        evaluate(trained)
