from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN
from stopping import stop_after

from mnist_ce.cli import main
from mnist_ce.data.synthetic import generate
from mnist_ce.runs.checkpoint import load_tensors, read_weights, save_tensors, weights_sha256
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, shipped_weights
from mnist_ce.system.errors import CheckpointError, DataError, RunError, StoppedError, UsageError
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.trainer import train

EVERYTHING = {
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 1e-3,
    "average.decay": 0.99,
    "augment.rotation_degrees": 10.0,
    "augment.elastic_pixels": 1.0,
    "augment.final_epochs": 1,
    "schedule.kind": "one-cycle",
    "data.validation_size": 20,
    "train.test_every": 2,
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain step with everything": {"train.step": "plain", **EVERYTHING},
    "fast step with everything": {"train.step": "fast", **EVERYTHING},
    "patience": {
        "data.validation_size": 20,
        "optimizer.learning_rate": 1e-12,
        "train.patience": 2,
        "train.epochs": 30,
    },
    "step schedule, yes or no": {
        "schedule.kind": "step",
        "schedule.step_epochs": 1,
        "objective.kind": "binary",
        "average.decay": 0.9,
    },
}


def train_stopped(num_batches: int, settings: dict[str, Any], resume: str | None = None) -> None:
    """Train until a stop is requested after so many batches."""
    with pytest.raises(StoppedError, match=f"--resume {settings['run.output']}") as stopped:
        train(None, settings, resume=resume, **stop_after(num_batches))
    assert stopped.value.exit_code == 128 + signal.SIGTERM


def resume(base: dict[str, Any], name: str = "a", **settings: Any) -> TrainResult:
    """Continue a run, with settings like `train__epochs=5`."""
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    return train(None, {"run.output": base["run.output"], **changes}, resume=name)


@pytest.fixture
def base(small_settings: dict[str, Any]) -> dict[str, Any]:
    """Three epochs of ten batches."""
    return {**small_settings, "train.epochs": 3, "run.log_interval": 4}


@pytest.fixture
def stopped(base: dict[str, Any]) -> RunDir:
    """The run `a`, stopped after three batches."""
    train_stopped(3, base | {"run.name": "a"})
    return RunDir(Path(base["run.output"]) / "a")


def train_in_pieces(settings: dict[str, Any], stops: Sequence[int]) -> TrainResult:
    """Train, stopped after each of these numbers of batches since the run began."""
    output = {key: settings[key] for key in ("run.output", "data.dir")}
    for before, stop in pairwise([0, *stops]):
        changes, resume = (output, settings["run.name"]) if before else (settings, None)
        train_stopped(stop - before, changes, resume)
    return train(None, output, resume="latest")


def without_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def check_equal(found: TrainResult, expected: TrainResult) -> None:
    assert found.record["weights_sha256"] == expected.record["weights_sha256"]
    assert without_times(found.rows) == without_times(expected.rows)
    read = [without_times(result.run.read_metrics()) for result in (found, expected)]
    assert read[0] == read[1]
    steps = [result.run.steps_path.read_bytes() for result in (found, expected)]
    assert steps[0] == steps[1]
    paths = [result.run.best_path for result in (found, expected)]
    best = [weights_sha256(read_weights(path)[0]) if path.exists() else None for path in paths]
    assert best[0] == best[1]
    assert found.record.model_fields_set == expected.record.model_fields_set
    assert found.record["status"] == "finished"


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_in_pieces_equals_one_in_one_go(base: dict[str, Any], name: str) -> None:
    settings = base | RECIPES[name]
    expected = train(None, settings | {"run.name": "whole"})
    # within the first epoch, at its last batch but one, at its end, and within the next ones
    pieces = train_in_pieces(settings | {"run.name": "pieces"}, [1, 9, 10, 17])
    check_equal(pieces, expected)


def test_the_other_step_continues_nearly_the_same(base: dict[str, Any]) -> None:
    expected = train(None, base | {"run.name": "whole", "train.step": "plain"})
    train_stopped(13, base | {"run.name": "a", "train.step": "fast"})
    found = resume(base, train__step="plain")
    assert found.rows[-1]["train_loss"] == pytest.approx(expected.rows[-1]["train_loss"], rel=1e-3)


def test_a_finished_run_is_extended_and_then_left_as_it_is(
    base: dict[str, Any], log_lines: Callable[[], list[str]]
) -> None:
    expected = train(None, base | {"run.name": "five", "train.epochs": 5})
    train(None, base | {"run.name": "three", "run.save_every_seconds": 1e-9})
    found = resume(base, "three", train__epochs=5)
    check_equal(found, expected)
    assert found.record["epochs"] == 5
    assert "epochs = 5" in found.run.config_path.read_text()
    check_equal(resume(base, "three"), expected)
    assert f"run {found.run.path} is complete after 5 epochs" in log_lines()
    with pytest.raises(RunError, match="there is no resumable run"):
        resume(base, "latest")


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({}, {"train.epochs": 1}, "past epoch 1 already; give more --epochs"),
        ({"schedule.kind": "one-cycle"}, {"train.epochs": 3}, "'one-cycle' is laid out for 2"),
        ({"augment.final_epochs": 1}, {"train.epochs": 3}, "final_epochs = 1 is laid out for 2"),
        ({}, {"train.batch_size": 10}, "train.batch_size cannot change"),
        ({}, {"run.name": "b"}, "run.name cannot change"),
    ],
)
def test_only_where_and_how_long_may_change(
    base: dict[str, Any], settings: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    train(None, base | settings | {"run.name": "a", "train.epochs": 2})
    with pytest.raises(UsageError, match=reason):
        resume(base, **change)


def change_snapshot(change: Callable[[dict[str, Any]], object]) -> Callable[[RunDir], object]:
    """Return what changes the content of a run's `resume.pt`."""

    def apply(run: RunDir) -> None:
        content = load_tensors(run.resume_path)
        change(content)
        save_tensors(run.resume_path, content)

    return apply


def flip_a_bit(run: RunDir) -> None:
    weights = load_tensors(run.resume_path)["step"]["weights"]["l1.weight"].numpy().tobytes()
    content = bytearray(run.resume_path.read_bytes())
    content[content.index(weights)] ^= 1
    run.resume_path.write_bytes(content)


def take_snapshot_of(name: str) -> Callable[[RunDir], object]:
    return lambda run: shutil.copy(run.path.with_name(name) / "resume.pt", run.resume_path)


def calibrate(run: RunDir) -> None:
    run.write_record((run.read_record() or RunRecord()).updated(prediction={"temperature": 1.5}))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HUGE = {"l1.weight": torch.zeros(1).expand(2**40)}
# By what happens to a finished (F) or stopped (S) run: what resuming it does.
CONTINUES, UNCHANGED = "continues", "unchanged"
STATES: dict[str, tuple[str, Callable[[RunDir], object], str]] = {
    "complete": ("F", lambda run: None, UNCHANGED),
    "calibrated": ("F", calibrate, UNCHANGED),
    "interrupted": ("S", lambda run: None, CONTINUES),
    "killed": ("S", lambda run: (run.path / ".resume.pt.01.tmp").write_bytes(b"half"), CONTINUES),
    "copied": ("S", lambda run: shutil.copytree(run.path, run.path.with_name("b")), CONTINUES),
    "older file": (
        "S",
        change_snapshot(lambda c: (c.update(progress=c.pop("train_state")), c.pop("definition"))),
        CONTINUES,
    ),
    "complete without resume.pt": ("F", lambda run: run.resume_path.unlink(), "has no resume.pt"),
    "without resume.pt": ("S", lambda run: run.resume_path.unlink(), "has no resume.pt"),
    "without record": ("S", lambda run: run.record_path.unlink(), "it has no run.json"),
    "without config": ("S", lambda run: run.config_path.unlink(), "there is no run a"),
    "without weights": ("F", lambda run: run.model_path.unlink(), "model.pt is neither"),
    "other weights": ("F", take_snapshot_of("seed"), "seed is 1 there and 0 here"),
    "read-only": ("S", lambda run: run.path.chmod(0o555), "cannot be written"),
    "another seed": ("S", take_snapshot_of("seed"), "train.seed is 1 there and 0 here"),
    "another network": ("S", take_snapshot_of("network"), "model.hidden is .8. there"),
    "another recipe": ("S", take_snapshot_of("recipe"), "optimizer.momentum is 0.25 there"),
    "pipe as resume.pt": ("S", lambda run: replace_by_pipe(run.resume_path), "is not a file"),
    "pipe as steps.csv": ("S", lambda run: replace_by_pipe(run.steps_path), "is not a file"),
    "pipe as run.json": ("S", lambda run: replace_by_pipe(run.record_path), "is not a file"),
    "pipe as lock": ("S", lambda run: replace_by_pipe(run.lock_path), "is not a file"),
    "a changed bit": ("S", flip_a_bit, r"resume.pt is damaged: its bytes have changed"),
    "part": ("S", change_snapshot(lambda c: c.pop("step")), "does not belong"),
    "version": ("S", change_snapshot(lambda c: c.update(format_version=99)), "version must be 1"),
    "text": (
        "S",
        change_snapshot(lambda c: c["step"].update(num_steps="3")),
        "num_steps must be a whole number",
    ),
    "tensor": (
        "S",
        change_snapshot(lambda c: c["step"]["weights"].pop("l1.bias")),
        "of another network",
    ),
    "size": (
        "S",
        change_snapshot(lambda c: c["step"]["momentum"].update(HUGE)),
        "has a tensor of 1,099,511,627,776 values",
    ),
    "number": (
        "S",
        change_snapshot(lambda c: c["step"]["weights"].update({"l1.bias": 3})),
        "step.weights.l1.bias must be",
    ),
    "epoch": ("S", change_snapshot(lambda c: c["train_state"].update(epoch=3)), "train_state"),
    "rows": ("S", change_snapshot(lambda c: c["train_state"].update(rows=[{}])), "train_state"),
    "batch": ("S", change_snapshot(lambda c: c["train_state"].update(batch=4)), "does not fit"),
    "unknown": ("S", change_snapshot(lambda c: c["train_state"].update(colour=4)), "train_state"),
}


@pytest.fixture(scope="module")
def runs(tiny_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and a stopped run of two epochs, and some that differ."""
    output = tmp_path_factory.mktemp("runs")
    data = {"data.dataset": "synthetic", "data.dir": str(tiny_data_dir)}
    base = {**SMALL_RUN, **data, "run.output": str(output)}
    train(None, base | {"run.name": "F"})
    train_stopped(13, base | {"run.name": "S"})
    others: dict[str, dict[str, Any]] = {
        "seed": {"train.seed": 1},
        "network": {"model.hidden": [8]},
        "recipe": {"optimizer.momentum": 0.25},
    }
    for name, changes in others.items():
        train_stopped(13, base | changes | {"run.name": name})
    return output


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("name", STATES)
def test_a_run_is_continued_rightly_or_left_as_it_is(name: str, runs: Path, tmp_path: Path) -> None:
    kind, change, outcome = STATES[name]
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    run = RunDir((tmp_path / kind).rename(tmp_path / "a"))  # which it was not trained as
    change(run)
    before = content(run.path)
    if outcome not in (CONTINUES, UNCHANGED):
        with pytest.raises((RunError, CheckpointError), match=outcome):
            resume({"run.output": str(tmp_path)})
        assert content(run.path) == before
        return
    result = resume({"run.output": str(tmp_path)})
    expected = RunDir(runs / "F").read_record()
    assert expected is not None
    assert result.record.weights_sha256 == expected.weights_sha256
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    if outcome == UNCHANGED:
        assert content(run.path) == before


def test_shipped_weights_are_not_continued(tmp_path: Path) -> None:
    for weights in ("mnist", "world", "pretrained"):
        before = content(shipped_weights(weights).parent)
        for name in (weights, str(shipped_weights(weights).parent)):
            with pytest.raises(RunError, match="shipped weights, which are not continued"):
                resume({"run.output": str(tmp_path)}, name)
        assert content(shipped_weights(weights).parent) == before


def test_a_run_is_trained_by_one_process(base: dict[str, Any], stopped: RunDir) -> None:
    with stopped.lock():
        with pytest.raises(RunError, match=r"a is being trained by process \d+ on "):
            resume(base)
        with pytest.raises(RunError, match="there is no resumable run"):
            resume(base, "latest")
    assert resume(base).record["epochs_done"] == 3


def test_a_clock_that_goes_backwards_changes_nothing(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(None, base)
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr("time.time", lambda: 3600.0 * next(hours))
    pieces = train_in_pieces(base | {"run.name": "a"}, [4, 12])
    check_equal(pieces, expected)
    assert all(row["seconds"] > 0 for row in pieces.rows)


def test_data_that_was_moved_is_known_by_its_digest(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = generate(60, seed=3)
    for name in ("old", "other"):
        np.savez(tmp_path / name, x_train=digits.images, y_train=digits.labels)
        digits = generate(60, seed=4)
    old, new, other = (f"npz:{tmp_path}/{name}.npz" for name in ("old", "new", "other"))
    settings = {"data.dataset": old, "data.validation_size": 9}
    result = train(None, base | settings | {"run.name": "a"})
    (tmp_path / "old.npz").rename(tmp_path / "new.npz")
    with pytest.raises(DataError, match=r"old\.npz"):
        resume(base, train__epochs=4)
    with pytest.raises(RunError, match="was trained on other data than this"):
        resume(base, data__dataset=other)
    command = ["evaluate", str(result.run.path), "--dataset", new]
    assert main([*command, "--verify"]) == 0
    assert main([*command, "--split", "validation"]) == 0
    assert "validation split, 9 images" in capsys.readouterr().out
    record = resume(base, train__epochs=4, data__dataset=new).record
    assert (record.dataset, record.epochs_done) == (new, 4)
    assert resume(base, train__epochs=5).record.dataset == new
