from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_ce import evaluate, load_model, predict, train
from mnist_ce.config import ScheduleConfig
from mnist_ce.runs.checkpoint import weights_sha256
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import TrainingError
from mnist_ce.training.trainer import Callback, StopFlag, TrainResult, learning_rates

Train = Callable[..., TrainResult]


def test_a_run_leaves_what_the_readme_says(train_small: Train) -> None:
    result = train_small()
    files = {path.name for path in result.run.path.iterdir()}
    assert {"model.pt", "resume.pt", "config.toml", "metrics.csv", "run.json"} <= files
    assert "best.pt" not in files
    state = torch.load(result.run.model_path, weights_only=True)
    assert list(state) == [f"l{n}.{part}" for n in (1, 2, 3) for part in ("weight", "bias")]
    record = json.loads(result.run.record_path.read_text())
    assert record["status"] == "finished"
    assert record["weights_sha256"] == weights_sha256(state)
    assert record["dataset"] == "mnist"
    assert record["class_names"] == list("0123456789")
    assert record["test_accuracy"] == record["test_correct"] / record["test_total"]
    rows = list(csv.DictReader(result.run.metrics_path.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    columns = {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert columns | {"learning_rate", "seconds", "images_per_second"} <= rows[0].keys()
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert "name" not in tomllib.loads(result.run.config_path.read_text())["run"]
    again = train(result.run.config_path, {"run.output": str(result.run.path.parent)})
    assert again.run.path != result.run.path
    assert again.record["weights_sha256"] == result.record["weights_sha256"]


def test_equal_seeds_give_equal_bytes_and_others_do_not(train_small: Train) -> None:
    digests = [train_small(train__seed=seed).record["weights_sha256"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_training_leaves_global_state_alone(train_small: Train) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train_small(train__threads=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_losses_are_means_over_examples(train_small: Train) -> None:
    """1,000 images in batches of 30 leave 10 for the last: a mean of batch means would differ."""
    result = train_small(train__epochs=1, optimizer__learning_rate=1e-12)
    assert result.rows[0]["train_loss"] == pytest.approx(math.log(10), abs=0.1)
    report = evaluate(result.run.path, split="train")
    assert result.rows[0]["train_loss"] == pytest.approx(report.result.loss, rel=1e-4)
    logits, labels = report.result.logits.double(), report.result.labels
    assert report.result.loss == pytest.approx(float(nn.CrossEntropyLoss()(logits, labels)))


def test_a_validation_split_chooses_the_best_epoch(train_small: Train) -> None:
    result = train_small(data__validation_size=200, train__epochs=4)
    best = max(result.rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert result.record["best_epoch"] == best["epoch"]
    found = evaluate(result.run.best_path, split="validation").result
    assert (found.num_examples, found.accuracy) == (200, best["validation_accuracy"])


def test_patience_ends_a_run_that_does_not_improve(train_small: Train) -> None:
    settings = {"data__validation_size": 200, "train__patience": 2, "train__epochs": 50}
    result = train_small(**settings, optimizer__learning_rate=1e-12, train__test_every=0)
    assert ["test_loss" in row for row in result.rows] == [False, False, True]
    assert result.record["test_accuracy"] is not None


def test_a_loss_that_is_not_finite_stops_the_run(train_small: Train, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"in epoch \d, batch \d+ of 34"):
        train_small("diverged", optimizer__learning_rate=1e30)
    assert json.loads((tmp_path / "diverged" / "run.json").read_text())["status"] == "failed"


def test_a_stop_is_not_waited_for_after_a_run_that_raised(small_settings: dict[str, Any]) -> None:
    """The next signal, outside of training, then ends the process at once."""
    stop = StopFlag()

    class Prunes(Callback):
        def on_epoch(self, metrics: EpochMetrics) -> None:
            assert stop.is_checked
            raise KeyError

    with pytest.raises(KeyError):
        train(None, small_settings, callbacks=[Prunes()], stop=stop)
    assert not stop.is_checked


def test_a_run_can_be_loaded_evaluated_and_used(train_small: Train) -> None:
    result = train_small()
    report = evaluate(load_model(result.run.path))
    assert report.result.accuracy == result.record["test_accuracy"]
    images = [image.numpy() for image in report.images[:20]]
    predictions = predict(images, checkpoint=result.run.path, min_confidence=0.0)
    assert [item.label for item in predictions] == report.result.predictions[:20].tolist()


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (ScheduleConfig(), 0.1, 0.1),
        (ScheduleConfig(kind="one-cycle"), 0.1 / 25, 0.1 / 25 / 1e4),
        (ScheduleConfig(kind="one-cycle", anneal="linear"), 0.1 / 25, 0.1 / 25 / 1e4),
        (ScheduleConfig(kind="cosine", final_fraction=0.1), 0.1, 0.01),
        (ScheduleConfig(kind="step", step_epochs=2, factor=0.5), 0.1, 0.05),
    ],
)
def test_schedules(schedule: ScheduleConfig, first: float, last: float) -> None:
    rate = learning_rates(schedule, 0.1, num_epochs=4, steps_per_epoch=25)
    rates = [rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last, rel=0.02)
    assert max(rates) == pytest.approx(0.1)
    if schedule.kind == "step":
        assert rates[49] == 0.1
        assert rates[50] == pytest.approx(0.05)
