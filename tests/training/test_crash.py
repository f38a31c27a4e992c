"""Runs that are killed, stopped or out of disk space, in processes of their own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Start
from stopping import kill_at_write

from mnist_ce.cli import main
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.trainer import train


@pytest.fixture
def settings(small_settings: dict[str, Any]) -> dict[str, Any]:
    own = {"run.name": "a", "data.validation_size": 20, "average.decay": 0.9}
    return {**small_settings, **own, "run.save_every_seconds": 1e-9, "run.log_interval": 3}


def options(settings: dict[str, Any]) -> list[str]:
    shown = {key: "false" if value is False else value for key, value in settings.items()}
    return [part for key, value in shown.items() for part in ("--set", f"{key}={value}")]


def start_or_resume(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if Path(settings["run.output"], "a").exists():
        train(None, {key: settings[key] for key in ("run.output", "data.dir")}, resume="a")
    else:
        train(None, settings)


def killed_at_write(settings: dict[str, Any], number: int) -> None:
    kill_at_write(number)
    start_or_resume(settings)


def ended(process: ForkServerProcess) -> int:
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def wait_for(path: Path) -> None:
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def record_of(run: RunDir) -> RunRecord:
    record = run.read_record()
    assert record is not None
    return record


def files_of(run: RunDir) -> tuple[bytes, bytes]:
    return run.best_path.read_bytes(), run.steps_path.read_bytes()


def expected_of(settings: dict[str, Any]) -> tuple[str, bytes, bytes]:
    torch.set_num_threads(1)
    result = train(None, settings | {"run.name": "whole"})
    return result.record["weights_sha256"], *files_of(result.run)


def found_in(settings: dict[str, Any]) -> tuple[str, bytes, bytes]:
    run = RunDir(Path(settings["run.output"], "a"))
    record = record_of(run)
    assert record["status"] == "finished"
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    assert not list(run.path.glob(".*.tmp"))
    return record["weights_sha256"], *files_of(run)


@pytest.mark.slow
def test_killed_between_any_two_writes(settings: dict[str, Any], start: Start) -> None:
    """Each attempt gets a little further than the last, through every write of the run."""
    expected = expected_of(settings)
    for number in range(2, 200, 3):
        code = ended(start(killed_at_write, settings, number))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 10
    assert found_in(settings) == expected


@pytest.fixture
def endless(settings: dict[str, Any]) -> list[str]:
    """Arguments of a run that would take minutes."""
    return options(settings | {"train.epochs": 100_000, "run.save_every_seconds": 1000.0})


def command(arguments: list[str], patched: str = "", number: int = 0) -> None:
    """Train; a function that is patched sends this process a signal, if given, and hangs."""

    def hang(*_: object, **__: object) -> None:
        if number:
            os.kill(os.getpid(), number)
        while True:
            time.sleep(0.01)

    # Undo what the suite may have inherited: a shell ignores SIGINT in background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if patched:
        pytest.MonkeyPatch().setattr(patched, hang)
    sys.exit(main(["train", "-q", *arguments]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(
    endless: list[str], start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(command, endless)
    wait_for(tmp_path / "a" / "model.pt")
    assert process.pid is not None
    os.kill(process.pid, number)
    assert ended(process) == 128 + number
    run = RunDir(tmp_path / "a")
    assert record_of(run)["status"] == "stopped"
    epochs = len(run.read_metrics())
    result = train(None, {"run.output": str(tmp_path), "train.epochs": epochs + 1}, resume="latest")
    assert result.record["epochs_done"] == epochs + 1


def test_the_second_signal_stops_at_once(endless: list[str], start: Start, tmp_path: Path) -> None:
    process = start(command, endless, "mnist_ce.training.callbacks.ProgressCallback.on_epoch")
    wait_for(tmp_path / "a" / "model.pt")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # the callback never returns
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    output = {"run.output": str(tmp_path), "train.epochs": 2}
    assert train(None, output, resume="a").record["epochs_done"] == 2


def test_a_signal_while_data_is_loaded_leaves_nothing(
    endless: list[str], start: Start, tmp_path: Path
) -> None:
    process = start(command, endless, "mnist_ce.training.setup.load_splits", signal.SIGTERM)
    assert ended(process) == 143
    assert not list(tmp_path.iterdir())


def test_a_signal_while_plotting_leaves_a_finished_run(
    settings: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    arguments = options(settings | {"run.plots": "true"})
    process = start(command, arguments, "mnist_ce.training.trainer.draw_plots", signal.SIGINT)
    assert ended(process) == 130
    assert record_of(RunDir(tmp_path / "a"))["status"] == "finished"


def with_full_disk(arguments: list[str], num_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    sys.exit(main(["train", "-q", *arguments]))


def test_a_full_disk_keeps_what_was_saved(
    settings: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    expected = expected_of(settings)
    resumed = ["--resume", "a", "--output", str(tmp_path)]
    assert ended(start(with_full_disk, options(settings), 8_000)) == 1
    assert not (tmp_path / "a").exists()
    for arguments in (options(settings), resumed):  # weights and average, but not the momentum
        assert ended(start(with_full_disk, arguments, 200_000)) == 1
        record_of(RunDir(tmp_path / "a"))
        assert not list((tmp_path / "a").glob(".*.tmp"))
    start_or_resume(settings)
    assert found_in(settings) == expected
