"""Training, evaluation and the files of a run, through the doors that users take."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_ce import MLP, evaluate, load_model, predict, train
from mnist_ce.cli import main
from mnist_ce.config import ScheduleConfig
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.runs.checkpoint import load_state_dict, weights_sha256
from mnist_ce.system.errors import TrainingError
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.schedule import learning_rates

pytestmark = pytest.mark.usefixtures("small_data")

QUICK = {
    "model.hidden": (40, 20),
    "optimizer.learning_rate": 0.1,
    "optimizer.momentum": 0.9,
    "train.epochs": 2,
    "run.plots": False,
}


def run(folder: Path, **settings: Any) -> TrainResult:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return train(None, {**QUICK, "run.output": str(folder), **named})


def test_a_run_leaves_what_the_readme_says(tmp_path: Path) -> None:
    result = run(tmp_path)
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
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} <= rows[0].keys()
    assert {"learning_rate", "seconds", "images_per_second"} <= rows[0].keys()
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])

    assert "name" not in tomllib.loads(result.run.config_path.read_text())["run"]
    again = train(result.run.config_path, {"run.output": str(tmp_path)})
    assert again.run.path != result.run.path
    assert again.record["weights_sha256"] == result.record["weights_sha256"]


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    digests = [run(tmp_path, train__seed=seed).record["weights_sha256"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_training_leaves_global_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run(tmp_path, train__threads=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_first_loss_is_near_ln_10(tmp_path: Path) -> None:
    result = run(tmp_path, train__epochs=1, optimizer__learning_rate=1e-9)
    assert result.rows[0]["train_loss"] == pytest.approx(math.log(10), abs=0.1)


def test_losses_are_means_over_examples(tmp_path: Path) -> None:
    """1,000 images in batches of 64 leave 40 for the last: a mean of batch means would differ."""
    result = run(tmp_path, train__epochs=1, optimizer__learning_rate=1e-12)
    report = evaluate(result.run.path, split="train")
    assert result.rows[0]["train_loss"] == pytest.approx(report.result.loss, rel=1e-4)
    logits, labels = report.result.logits.double(), report.result.labels
    assert report.result.loss == pytest.approx(float(nn.CrossEntropyLoss()(logits, labels)))


def test_a_validation_split_chooses_the_best_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, data__validation_size=200, train__epochs=4)
    best = max(result.rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert result.record["best_epoch"] == best["epoch"]
    report = evaluate(result.run.best_path, split="validation")
    assert report.result.num_examples == 200
    assert report.result.accuracy == best["validation_accuracy"]


def test_patience_ends_a_run_that_does_not_improve(tmp_path: Path) -> None:
    settings = {"data__validation_size": 200, "train__patience": 2, "train__epochs": 50}
    result = run(tmp_path, **settings, optimizer__learning_rate=1e-12, train__test_every=0)
    assert len(result.rows) == 3
    assert result.record["test_accuracy"] is not None


def test_testing_only_at_the_end(tmp_path: Path) -> None:
    rows = run(tmp_path, train__epochs=3, train__test_every=0).rows
    assert ["test_loss" in row for row in rows] == [False, False, True]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"in epoch \d, batch \d+ of 16"):
        run(tmp_path, optimizer__learning_rate=1e30, run__name="diverged")
    record = json.loads((tmp_path / "diverged" / "run.json").read_text())
    assert record["status"] == "failed"


def test_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "--output", str(tmp_path), "--set", "model.hidden=[40]"]
    assert main(["train", *words]) == 0
    assert not list(tmp_path.iterdir())
    assert "dry run" in capsys.readouterr().out


def test_json_is_all_of_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", str(tmp_path), "--epochs", "1", "--set", "model.hidden=[40]", "--name"]
    assert main(["train", *words, "one", "--json", "--set", "run.plots=false"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["name"] == "one"
    assert "epoch 1/1" in told.err
    assert main(["train", *words, "one"]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err

    assert main(["evaluate", "one", "--output", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == sum(map(sum, report["confusion_matrix"])) == 1_000
    assert report["correct"] == sum(row[n] for n, row in enumerate(report["confusion_matrix"]))
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high


class Foreign(nn.Module):
    """Another program's network, which happens to name its layers l1 to l5."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(784, 520), nn.Linear(520, 320), nn.Linear(320, 240)
        self.l4, self.l5 = nn.Linear(240, 120), nn.Linear(120, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 784)
        for layer in (self.l1, self.l2, self.l3, self.l4):
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.l5(x)
        return logits


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081)])
def test_a_foreign_state_dict_gets_its_own_count(tmp_path: Path, mean: float, std: float) -> None:
    torch.manual_seed(3)
    network = Foreign()
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    report = evaluate(load_model(tmp_path / "foreign.pt", input_mean=mean, input_std=std))
    images = (report.images.float() / 255 - mean) / std
    with torch.no_grad():
        answers = network(images.unsqueeze(1)).argmax(dim=1)
    assert report.result.num_correct == int((answers == report.result.labels).sum())
    assert load_state_dict(tmp_path / "foreign.pt").keys() == network.state_dict().keys()
    network.load_state_dict(load_model(tmp_path / "foreign.pt").model.state_dict())


def test_the_library_does_what_the_command_does(tmp_path: Path) -> None:
    result = run(tmp_path)
    trained = load_model(result.run.path)
    assert isinstance(trained.model, MLP)
    report = evaluate(trained)
    assert report.result.accuracy == result.record["test_accuracy"]
    images = [image.numpy() for image in report.images[:20]]
    answers = predict(images, checkpoint=result.run.path, min_confidence=0.0)
    assert [answer.label for answer in answers] == report.result.predictions[:20].tolist()


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


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    images, labels = torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100)

    def order(seed: int, epoch: int) -> list[int]:
        batches = DeviceLoader(images, labels, batch_size=32, seed=seed)
        parts = list(batches.epoch(epoch))
        assert [len(part) for part in parts] == [32, 32, 32, 4]
        assert all(map(torch.equal, batches.epoch(epoch, start=2), parts[2:]))
        return torch.cat(parts).tolist()

    assert order(1, 1) == order(1, 1)
    assert sorted(order(1, 1)) == list(range(100))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_classic_recipe_on_real_mnist(
    mnist_dir: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real data
    settings = {"data.dir": str(mnist_dir), "data.dataset": "mnist", "train.seed": seed}
    result = train(None, {**settings, "run.output": str(tmp_path)})
    assert 0.962 <= result.record["test_accuracy"] <= 0.974
