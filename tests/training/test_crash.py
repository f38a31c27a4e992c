"""Runs that are killed, stopped or out of disk space."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Start
from stopping import kill_at_write

from mnist_ce.cli import main
from mnist_ce.runs import train_state
from mnist_ce.runs.checkpoint import save_tensors
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError
from mnist_ce.training.trainer import train

EPOCH_END = "mnist_ce.training.callbacks.ProgressCallback.on_epoch"


@pytest.fixture
def settings(small_settings: dict[str, Any]) -> dict[str, Any]:
    own = {"run.name": "a", "data.validation_size": 20, "average.decay": 0.9}
    return {**small_settings, **own, "run.save_every_seconds": 1e-9, "run.log_interval": 3}


def start_or_resume(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if Path(settings["run.output"], "a").exists():
        train(None, {key: settings[key] for key in ("run.output", "data.dir")}, resume="a")
    else:
        train(None, settings)


def killed_at_write(settings: dict[str, Any], number: int) -> None:
    kill_at_write(number)
    start_or_resume(settings)


def record_of(run: RunDir) -> RunRecord:
    record = run.read_record()
    assert record is not None
    return record


def result_in(run: RunDir) -> tuple[str, bytes, bytes]:
    record = record_of(run)
    assert record.status == "finished"
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    assert not list(run.path.glob(".*.tmp"))
    return str(record.weights_sha256), run.best_path.read_bytes(), run.steps_path.read_bytes()


@pytest.mark.slow
def test_killed_between_any_two_writes(
    settings: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    """Each attempt gets a little further than the last, through every write of the run."""
    start_or_resume(settings)
    expected = result_in(RunDir((tmp_path / "a").rename(tmp_path / "whole")))
    for number in range(2, 200, 3):
        process = start(killed_at_write, settings, number)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert number > 10
    assert result_in(RunDir(tmp_path / "a")) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("patched", "num_signals", "status"),
    [
        (EPOCH_END, 1, "stopped"),  # after the batch
        (EPOCH_END, 2, "running"),  # at once
        ("mnist_ce.training.setup.load_splits", 1, None),  # there is no run yet
        ("mnist_ce.training.trainer.draw_plots", 1, "finished"),
    ],
)
def test_stopped_by_a_signal(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    patched: str,
    num_signals: int,
    status: str | None,
) -> None:
    """The signals come when the patched function is called."""
    shown = settings | {"run.plots": "true", "run.save_every_seconds": 1000.0}
    options = [part for key, value in shown.items() for part in ("--set", f"{key}={value}")]
    before = signal.signal(number, signal.SIG_DFL)  # a shell ignores SIGINT in background jobs

    def raise_signals(*arguments: object, **options: object) -> None:
        for _ in range(num_signals):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(patched, raise_signals)
        assert main(["train", "-q", *options]) == 128 + number
    signal.signal(number, before)
    run = RunDir(tmp_path / "a")
    if status is None:
        assert not run.path.exists()
    else:
        assert record_of(run).status == status
        result = train(None, {"run.output": str(tmp_path), "run.plots": False}, resume="a")
        assert result.record.epochs_done == 2


def failing_at(number: int) -> Callable[..., None]:
    """Return `save_tensors` with a disk that is full at the n-th call."""
    numbers = count()

    def save(*arguments: Any) -> None:
        if next(numbers) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_tensors(*arguments)

    return save


def test_a_full_disk_keeps_what_was_saved(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_or_resume(settings)
    expected = result_in(RunDir((tmp_path / "a").rename(tmp_path / "whole")))
    for number in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(train_state, "save_tensors", failing_at(number))
            with pytest.raises(RunError, match="No space left"):
                start_or_resume(settings)
        assert (tmp_path / "a").exists() == (number > 0)
    start_or_resume(settings)
    assert result_in(RunDir(tmp_path / "a")) == expected
