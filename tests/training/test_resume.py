from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import stop_after

from mnist_ce.runs.checkpoint import load_state_dict, load_tensors, save_tensors, weights_sha256
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import CheckpointError, RunError, StoppedError, UsageError
from mnist_ce.training.trainer import Callback, RunInfo, TrainResult, train

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
    "plain step": {"train.step": "plain"},
    "fast step": {"train.step": "fast"},
    "plain step with everything": {"train.step": "plain", **EVERYTHING},
    "fast step with everything": {"train.step": "fast", **EVERYTHING},
    "patience": {
        "data.validation_size": 20,
        "optimizer.learning_rate": 1e-6,
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
    best = [weights_sha256(load_state_dict(path)) if path.exists() else None for path in paths]
    assert best[0] == best[1]
    assert found.record.model_fields_set == expected.record.model_fields_set
    assert found.record["status"] == "finished"


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_in_pieces_equals_one_in_one_go(base: dict[str, Any], name: str) -> None:
    settings = base | RECIPES[name]
    expected = train(None, settings | {"run.name": "whole"})
    # within the first epoch, at its last batch but one, at its end, and within the next ones
    pieces = train_in_pieces(settings | {"run.name": "pieces"}, [1, 3, 9, 10, 17])
    check_equal(pieces, expected)


def test_the_other_step_continues_nearly_the_same(
    base: dict[str, Any], log_warnings: Callable[[], list[str]]
) -> None:
    expected = train(None, base | {"run.name": "whole", "train.step": "plain"})
    train_stopped(13, base | {"run.name": "a", "train.step": "fast"})
    found = resume(base, train__step="plain")
    assert found.rows[-1]["train_loss"] == pytest.approx(expected.rows[-1]["train_loss"], rel=1e-3)
    assert ["step fast → plain" in text for text in log_warnings()] == [True]


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
    assert log_lines()[-1] == f"run {found.run.path} is complete after 5 epochs"
    with pytest.raises(RunError, match="there is no interrupted run"):
        resume(base, "latest")


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({}, {"train.epochs": 1}, "past epoch 1 already; give more --epochs"),
        ({"schedule.kind": "one-cycle"}, {"train.epochs": 3}, "'one-cycle' is laid out for 2"),
        ({"augment.final_epochs": 1}, {"train.epochs": 3}, "final_epochs = 1 is laid out for 2"),
        ({}, {"train.batch_size": 10}, "train.batch_size cannot change"),
        ({}, {"train.seed": 3}, "train.seed cannot change"),
        ({}, {"run.name": "b"}, "run.name cannot change"),
    ],
)
def test_only_where_and_how_long_may_change(
    base: dict[str, Any], settings: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    train(None, base | settings | {"run.name": "a", "train.epochs": 2})
    with pytest.raises(UsageError, match=reason):
        resume(base, **change)


def test_a_run_killed_before_its_first_save_begins_anew(
    base: dict[str, Any], stopped: RunDir
) -> None:
    expected = train(None, base | {"run.name": "whole"})
    stopped.resume_path.unlink()
    (stopped.path / ".resume.pt.0123.tmp").write_bytes(b"half a file")
    check_equal(resume(base, "latest"), expected)
    assert not list(stopped.path.glob(".*.tmp"))


def test_the_older_key_of_the_train_state_is_read(base: dict[str, Any], stopped: RunDir) -> None:
    expected = train(None, base | {"run.name": "whole"})
    content = load_tensors(stopped.resume_path)
    content["progress"] = content.pop("train_state")
    save_tensors(stopped.resume_path, content)
    check_equal(resume(base), expected)


def test_a_run_is_trained_by_one_process(base: dict[str, Any], stopped: RunDir) -> None:
    with stopped.lock():
        with pytest.raises(RunError, match=r"a is being trained by process \d+ on "):
            resume(base)
        with pytest.raises(RunError, match="there is no interrupted run"):
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


HUGE = {"l1.weight": torch.zeros(1).expand(2**40)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("step"), "does not belong"),
        (lambda content: content.update(format_version=99), "format_version must be 1"),
        (lambda content: content["step"].update(num_steps="3"), "num_steps must be a whole number"),
        (lambda content: content["step"]["weights"].pop("l1.bias"), "of another network"),
        (lambda content: content["step"]["momentum"].update(HUGE), "has another shape"),
        (
            lambda content: content["step"]["weights"].update({"l1.bias": 3}),
            "step.weights.l1.bias must be",
        ),
        (lambda content: content["train_state"].update(epoch=2), "train_state"),
        (lambda content: content["train_state"].update(rows=[{}]), "train_state"),
        (lambda content: content["train_state"].update(batch=4), "does not fit"),
        (lambda content: content["train_state"].update(colour=4), "train_state"),
    ],
)
def test_a_foreign_resume_file_is_refused(
    base: dict[str, Any], stopped: RunDir, change: Any, reason: str
) -> None:
    content = load_tensors(stopped.resume_path)
    change(content)
    save_tensors(stopped.resume_path, content)
    with pytest.raises(RunError, match=reason):
        resume(base)


def test_a_changed_byte_in_the_resume_file_is_noticed(
    base: dict[str, Any], stopped: RunDir
) -> None:
    path = stopped.resume_path
    weights = load_tensors(path)["step"]["weights"]["l1.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weights)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resume.pt is damaged: its bytes have changed"):
        resume(base)


def test_a_vanished_folder_is_named(base: dict[str, Any]) -> None:
    class Vanishes(Callback):
        def on_start(self, info: RunInfo) -> None:
            info.run.path.rename(info.run.path.with_name("elsewhere"))

    with pytest.raises(RunError, match=r"run folder .*a has vanished"):
        train(None, base | {"run.name": "a"}, callbacks=[Vanishes()])
