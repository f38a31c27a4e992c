from __future__ import annotations

import csv
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from mnist_ce import evaluate, train
from mnist_ce.config import ScheduleConfig
from mnist_ce.runs.checkpoint import weights_sha256
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import RunError, TrainingError
from mnist_ce.training.callbacks import Callback, StopFlag, TrainResult
from mnist_ce.training.trainer import learning_rates

Train = Callable[..., TrainResult]
HEADER = "step,epoch,loss,accuracy,learning_rate\n"


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
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert "name" not in tomllib.loads(result.run.config_path.read_text())["run"]
    again = train(result.run.config_path, {"run.output": str(result.run.path.parent)})
    assert again.run.path != result.run.path
    assert again.record["weights_sha256"] == result.record["weights_sha256"]


def test_python_sees_the_progress_of_the_command_line(
    small_settings: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    closed = Mock()
    result = train(None, small_settings, callbacks=[Mock(Callback, close=closed)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines if "batches of" in line] == ["synthetic"]
    num_epochs = len(result.rows)
    assert sum(f"/{num_epochs}  loss" in line for line in lines) == num_epochs
    assert lines[-1] == f"kept in {result.run.path}"
    train(None, small_settings, progress=False)
    assert not capsys.readouterr().err
    with pytest.raises(RunError):
        train(resume="none", callbacks=[Mock(Callback, close=closed)])
    assert closed.call_count == 2


def test_equal_seeds_give_equal_bytes_and_leave_global_state_alone(train_small: Train) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    found = [train_small(train__seed=n, run__log_interval=i) for n, i in ((0, 1), (0, 7), (1, 7))]
    digests = [result.record.weights_sha256 for result in found]
    assert digests[0] == digests[1] != digests[2]
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
    """The steps before it are kept."""
    with pytest.raises(TrainingError, match=r"in epoch \d, batch \d+ of 34") as raised:
        train_small("a", optimizer__learning_rate=1e30, run__log_interval=1)
    run = RunDir(tmp_path / "a")
    record = run.read_record()
    assert record is not None
    assert (record.status, record.error) == ("failed", str(raised.value))
    steps = [row["step"] for row in run.read_steps()]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < len(steps) < 34


def test_weights_that_the_last_update_makes_infinite_fail_the_run(
    train_small: Train, tmp_path: Path
) -> None:
    untested = {"train__test_every": -1, "train__epochs": 1, "train__batch_size": 1000}
    with pytest.raises(TrainingError, match="batch 1 of 1"):
        train_small("a", optimizer__learning_rate=1e45, **untested)
    record = RunDir(tmp_path / "a").read_record()
    assert record is not None
    assert record.status == "failed"
    assert not RunDir(tmp_path / "a").model_path.exists()


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


@hypothesis.settings(deadline=None)
@given(
    num_steps=st.integers(1, 40),
    warmup=st.floats(0.01, 0.99) | st.sampled_from([0.5, 0.25, 0.2, 0.1]),
    anneal=st.sampled_from(["cosine", "linear"]),
)
def test_one_cycle_of_any_length_ends_at_its_lowest_rate(
    num_steps: int, warmup: float, anneal: Any
) -> None:
    schedule = ScheduleConfig(kind="one-cycle", warmup_fraction=warmup, anneal=anneal)
    rates = list(map(learning_rates(schedule, 0.1, 1, num_steps), range(num_steps)))
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert all(rates[-1] <= rate <= 0.1 * (1 + 1e-9) for rate in rates)


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_the_rows_of_an_epoch_add_up_to_it(train_small: Train, kind: str) -> None:
    result = train_small("a", train__step=kind, run__log_interval=10, schedule__kind="cosine")
    rows = result.run.read_steps()
    # 34 batches of 30 images, but for the last, of 10; rows count from 1 over the whole run.
    assert [row["step"] for row in rows] == [10, 20, 30, 34, 44, 54, 64, 68]
    assert [row["epoch"] for row in rows] == [1] * 4 + [2] * 4
    weights = [300, 300, 300, 100]
    for epoch in (1, 2):
        own = [row for row in rows if row["epoch"] == epoch]
        for key in ("loss", "accuracy"):
            mean = sum(n * row[key] for n, row in zip(weights, own, strict=True)) / 1000
            row: Mapping[str, Any] = result.rows[epoch - 1]
            assert mean == pytest.approx(row[f"train_{key}"], rel=1e-5)
        assert own[-1]["learning_rate"] == pytest.approx(
            result.rows[epoch - 1]["learning_rate"], rel=1e-5
        )
    assert all(b["learning_rate"] < a["learning_rate"] for a, b in itertools.pairwise(rows))


def test_rows_are_truncated_to_a_step(tmp_path: Path) -> None:
    run, rows = RunDir(tmp_path), "10,1,2.5,0.1,0.01\n20,1,2,0.25,0.01\n30,1,1.5,0.5,0.01\n"
    assert not len(run.read_steps())
    run.append_steps("\n\n")
    assert not len(run.read_steps())
    run.steps_path.unlink()
    run.truncate_steps(20)  # a run of an older version has no such file
    assert not run.steps_path.exists()
    run.append_steps(rows)
    run.append_steps("40,1,1")  # by a process that was killed
    assert [row["step"] for row in run.read_steps()] == [10, 20, 30]
    run.truncate_steps(29)
    run.append_steps("30,1,9,0.5,0.01\n")
    expected = HEADER + rows.replace("1.5", "9")
    assert run.steps_path.read_text() == expected
    run.steps_path.write_text(expected.replace("20,", "2x,"))
    run.truncate_steps(40)
    assert run.steps_path.read_text() == HEADER + rows.splitlines(keepends=True)[0]
    run.steps_path.write_text(HEADER[:9])  # by a process that was killed
    run.truncate_steps(40)
    assert run.steps_path.read_bytes() == b""


def test_of_a_long_table_parts_are_read_from_start_to_end(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lines = (f"{10 * i},{1 + i // 94},{1 / i},0.5,0.01\n" for i in range(1, 10**6))
    run.append_steps("".join(lines))
    rows = run.read_steps()
    assert 30_000 < len(rows) < 100_000
    assert rows["step"][0] < 10**6 / 20
    assert rows["step"][-1] > 10**7 - 10**6 / 20
    assert 0 < np.diff(rows["step"]).min() == np.diff(rows["step"]).max() < 10**6 / 20
    assert np.array_equal(rows["loss"], 10 / rows["step"])


ROWS = (
    "1,1,x,1,1",
    "1,1,1",
    "1,1,nan,1,1",
    "1,1,inf,1,1",
    "-1,1,1,1,1",
    "1.5,1,1,1,1",
    "1,1,1,1,1\0",
)


@pytest.mark.parametrize(
    "text", ["loss\n1\n", "\xff\n", *(f"{HEADER}{row}\n" for row in (*ROWS, f"{'9' * 30},1,1,1,1"))]
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.csv").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"steps\.csv is not a table of metrics"):
        RunDir(tmp_path).read_steps()
