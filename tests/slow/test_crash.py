"""Runs that are killed, stopped or out of disk space, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.cli import main
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.trainer import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fork() -> ForkServerContext:
    """Processes that start quickly, since their parent has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnist_ce.training.trainer", "mnist_ce.cli.terminal"])
    return context


@pytest.fixture
def settings(tiny_data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data.dataset": "synthetic",
        "data.dir": str(tiny_data_dir),
        "data.validation_size": 20,
        "model.hidden": [24, 16],
        "average.decay": 0.9,
        "train.epochs": 3,
        "train.batch_size": 30,
        "train.threads": 1,
        "optimizer.learning_rate": 0.1,
        "run.output": str(tmp_path),
        "run.plots": False,
        "run.save_every_seconds": 1e-9,
    }


def start_or_resume(settings: dict[str, Any]) -> None:
    exists = (Path(settings["run.output"]) / "a").exists()
    output = {key: settings[key] for key in ("run.output", "data.dir")}
    torch.set_num_threads(1)
    if exists:
        train(None, output, resume="a")
    else:
        train(None, settings | {"run.name": "a"})


def killed_at_write(settings: dict[str, Any], number: int) -> None:
    """Train until SIGKILL before the n-th call that changes or flushes something on the disk."""
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "rename", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    start_or_resume(settings)


def ended(process: ForkServerProcess) -> int:
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def expected_of(settings: dict[str, Any]) -> tuple[str, str]:
    torch.set_num_threads(1)
    result = train(None, settings | {"run.name": "whole"})
    return result.record["weights_sha256"], result.run.best_path.read_bytes().hex()


def found_in(settings: dict[str, Any]) -> tuple[str, str]:
    run = RunDir(Path(settings["run.output"]) / "a")
    record = run.read_record()
    assert record is not None
    assert record["status"] == "finished"
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3]
    assert not list(run.path.glob(".*.tmp"))
    return record["weights_sha256"], run.best_path.read_bytes().hex()


def test_killed_between_any_two_writes(settings: dict[str, Any], fork: ForkServerContext) -> None:
    """Each attempt gets a little further than the last, through every write of the run."""
    expected = expected_of(settings)
    for number in range(2, 200, 3):
        process = fork.Process(target=killed_at_write, args=(settings, number))
        process.start()
        code = ended(process)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 10
    assert found_in(settings) == expected


@pytest.mark.parametrize("num_kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random(
    settings: dict[str, Any], fork: ForkServerContext, tmp_path: Path, num_kills: int
) -> None:
    """Runs that finish before all kills are done are checked and started anew."""
    expected = expected_of(settings)
    moments = random.Random(7)
    while True:
        process = fork.Process(target=start_or_resume, args=(settings,))
        process.start()
        if num_kills:
            process.join(moments.uniform(0.05, 0.4))
            if process.exitcode is None:
                process.kill()
                num_kills -= 1
        if ended(process) == 0:
            assert found_in(settings) == expected
            if not num_kills:
                break
            shutil.rmtree(tmp_path / "a")
        else:
            assert process.exitcode == -signal.SIGKILL


def reset_signals() -> None:
    """Undo what the suite may have inherited: a shell ignores SIGINT in background jobs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def train_with_signals(settings: dict[str, Any], arguments: list[str]) -> None:
    reset_signals()
    sys.exit(main(["train", "-q", *arguments]))


@pytest.fixture
def command(settings: dict[str, Any]) -> list[str]:
    """Arguments of a run that would take minutes."""
    settings |= {"train.epochs": 100_000, "run.name": "a", "run.save_every_seconds": 1000.0}
    shown = {
        key: str(value).lower() if value is False else value for key, value in settings.items()
    }
    return [part for key, value in shown.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(
    command: list[str], fork: ForkServerContext, tmp_path: Path, number: signal.Signals
) -> None:
    process = fork.Process(target=train_with_signals, args=({}, command))
    process.start()
    wait_for(tmp_path / "a" / "resume.pt")
    assert process.pid is not None
    os.kill(process.pid, number)
    assert ended(process) == 128 + number
    run = RunDir(tmp_path / "a")
    record = run.read_record()
    assert record is not None
    assert record["status"] == "stopped"
    epochs = len(run.read_metrics())
    result = train(None, {"run.output": str(tmp_path), "train.epochs": epochs + 1}, resume="latest")
    assert result.record["epochs_done"] == epochs + 1


def wait_for(path: Path) -> None:
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def stopped_while_stuck(arguments: list[str]) -> None:
    """Train, and hang in the callback after the first epoch."""

    def hang(*rest: object) -> None:
        while True:
            time.sleep(0.01)

    reset_signals()
    pytest.MonkeyPatch().setattr("mnist_ce.cli.terminal.TerminalCallback.on_epoch", hang)
    sys.exit(main(["train", "-q", *arguments]))


def test_the_second_signal_stops_at_once(
    command: list[str], fork: ForkServerContext, tmp_path: Path
) -> None:
    process = fork.Process(target=stopped_while_stuck, args=(command,))
    process.start()
    wait_for(tmp_path / "a" / "resume.pt")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # the callback never returns
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    output = {"run.output": str(tmp_path), "train.epochs": 2}
    assert train(None, output, resume="a").record["epochs_done"] == 2


def stopped_while_loading(arguments: list[str]) -> None:
    def load(*rest: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    reset_signals()
    pytest.MonkeyPatch().setattr("mnist_ce.training.trainer.load_data", load)
    sys.exit(main(["train", "-q", *arguments]))


def test_a_signal_while_data_is_loaded_leaves_nothing(
    command: list[str], fork: ForkServerContext, tmp_path: Path
) -> None:
    process = fork.Process(target=stopped_while_loading, args=(command,))
    process.start()
    assert ended(process) == 143
    assert not list(tmp_path.iterdir())


def stopped_while_plotting(arguments: list[str]) -> None:
    def draw(*rest: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    reset_signals()
    pytest.MonkeyPatch().setattr("mnist_ce.training.trainer.draw_plots", draw)
    options = ["--set", "run.plots=true", "--epochs", "1"]
    sys.exit(main(["train", "-q", *arguments, *options]))


def test_a_signal_while_plotting_leaves_a_finished_run(
    settings: dict[str, Any], fork: ForkServerContext, tmp_path: Path
) -> None:
    settings |= {"train.epochs": 1, "run.name": "a", "run.plots": "true"}
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    process = fork.Process(target=stopped_while_plotting, args=(arguments,))
    process.start()
    assert ended(process) == 130
    record = RunDir(tmp_path / "a").read_record()
    assert record is not None
    assert record["status"] == "finished"


def with_full_disk(settings: dict[str, Any], num_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    if (Path(settings["run.output"]) / "a").exists():
        options = ["--resume", "a", "--output", settings["run.output"]]
    sys.exit(main(["train", "-q", *options]))


def test_a_full_disk_keeps_what_was_saved(
    settings: dict[str, Any], fork: ForkServerContext, tmp_path: Path
) -> None:
    expected = expected_of(settings | {"run.name": "whole"})
    shown = settings | {"run.name": "a", "run.plots": "false"}
    # Enough for config and record; then for the weights but not the momentum.
    for num_bytes in (8_000, 100_000):
        process = fork.Process(target=with_full_disk, args=(shown, num_bytes))
        process.start()
        assert ended(process) == 1
        assert RunDir(tmp_path / "a").read_record() is not None
        assert not list((tmp_path / "a").glob(".*.tmp"))
    start_or_resume(settings)
    assert found_in(settings) == expected


def test_the_command_can_be_killed_and_continued(settings: dict[str, Any], tmp_path: Path) -> None:
    expected = expected_of(settings)
    shown = settings | {"run.name": "a", "run.plots": "false", "train.epochs": 3}
    options = [part for key, value in shown.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "mnist_ce", "train"]
    first = subprocess.Popen(
        [*command, *options], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    wait_for(tmp_path / "a" / "resume.pt")
    first.kill()
    first.communicate()
    again = subprocess.run(
        [*command, "--resume", "latest", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if first.returncode == 0:  # it finished before the signal
        assert "there is no interrupted run" in again.stderr
    else:
        assert again.returncode == 0, again.stderr
    assert found_in(settings) == expected
