"""Two processes on this machine, started by torchrun, against one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.cli import main
from mnist_ce.runs.checkpoint import read_weights
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).parents[2]
TRAIN = ("-m", "mnist_ce", "train")


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all of it can be ended
    )


@pytest.fixture
def flags(small_settings: dict[str, Any]) -> list[str]:
    """300 images in batches of 43: shards of 22 and 21, and in the last batch of 42."""
    own = {"train.step": "plain", "augment.rotation_degrees": 10.0, "average.decay": 0.9}
    settings = {**small_settings, "run.plots": "false", "train.batch_size": 43, **own}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def test_two_processes_do_what_one_does(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses agree, and so do the weights; one process continues what two began."""
    arguments = [*flags, "--verbose", "--set", "run.log_interval=1", "--name"]
    process = torchrun(*TRAIN, *arguments, "two")
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert out.count("test images correct") == 1  # one of them tells it
    assert "plain step on cpu, 2 processes" in errors
    record = RunDir(tmp_path / "two").read_record()
    assert record is not None
    assert record["processes"] == 2
    assert main(["train", *arguments, "one"]) == 0
    told, expected = (
        [float(loss) for loss in re.findall(r"batch \d+/7  loss ([\d.]+)", text)]
        for text in (errors, capsys.readouterr().err)
    )
    assert len(told) == 14
    assert told == pytest.approx(expected, abs=2e-4)  # as they are told with four digits
    rows = [RunDir(tmp_path / name).read_metrics() for name in ("two", "one")]
    for ours, theirs in zip(*rows, strict=True):
        for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4)
    one, two = (read_weights(tmp_path / name / "model.pt")[0] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-4)
    more = {"run.output": str(tmp_path), "train.epochs": 4}
    whole, found = (train(None, more, resume=name) for name in ("one", "two"))
    assert found.record["processes"] == 1
    assert found.rows[-1]["test_loss"] == pytest.approx(whole.rows[-1]["test_loss"], abs=1e-4)


def test_more_processes_than_images_and_a_killed_one(flags: list[str], tmp_path: Path) -> None:
    """Batches of one leave a process without an image; one that is killed ends them all."""
    process, errors = interrupt(
        [*flags, "--set", "train.batch_size=1"],
        tmp_path,
        lambda process: os.kill(worker(tmp_path, rank=1), signal.SIGKILL),
    )
    assert process.returncode != 0
    assert (
        "error: a process of this run has failed or ended" in errors or "stopped in epoch" in errors
    )
    assert "--resume" in errors
    resume_for_epochs(tmp_path, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_after_saving(
    flags: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """torchrun forwards it to each process once; the run can then be continued."""
    _, errors = interrupt(flags, tmp_path, lambda process: process.send_signal(number))
    assert errors.count("\nstopped in epoch") == 1
    record = RunDir(tmp_path / "a").read_record()
    assert record is not None
    assert record.status == "stopped"
    resume_for_epochs(tmp_path, 1)


def test_an_error_of_all_processes_is_printed_once(flags: list[str], tmp_path: Path) -> None:
    process = torchrun(*TRAIN, *flags, "--set", "train.init=gone")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert errors.count("checkpoint gone is neither") == 1
    assert not list(tmp_path.iterdir())


def interrupt(
    flags: list[str], output: Path, end: Callable[[subprocess.Popen[str]], object]
) -> tuple[subprocess.Popen[str], str]:
    """Train the run `a` without end, end it after its first save; return what it printed."""
    endless = ("--set", "train.epochs=100000", "--set", "run.save_every_seconds=0.05")
    process = torchrun(*TRAIN, *flags, "--name", "a", *endless)
    give_up_at = time.monotonic() + 120
    try:
        while not (output / "a" / "model.pt").exists() and time.monotonic() < give_up_at:
            time.sleep(0.05)
        end(process)
        return process, process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def resume_for_epochs(output: Path, num_epochs: int) -> None:
    more = len(RunDir(output / "a").read_metrics()) + num_epochs
    result = train(None, {"run.output": str(output), "train.epochs": more}, resume="latest")
    assert result.record["epochs_done"] == more


def worker(output: Path, rank: int) -> int:
    """Return the process of a rank that writes into this folder, as the system knows it."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            known = b"\0" + path.read_bytes() + path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if b"\0RANK=%d\0" % rank in known and bytes(output) in known:
            return int(path.parent.name)
    pytest.fail("no such process")


PROCESSES = """
import sys
from pathlib import Path
from mnist_ce.system.distributed import main_first, process_group, rank
from mnist_ce.system.errors import MnistCeError, RunError

case, folder = sys.argv[1], Path(sys.argv[2])

def load():
    if case == "fails":
        raise RunError("no such data")
    file = folder / "data"
    if rank() == 0:
        assert not file.exists()
        file.write_text("7")
    return file.read_text() + (str(rank()) if case == "differs" else "")

try:
    with process_group():
        loaded = main_first(load, digest=lambda text: text)
    (folder / str(rank())).write_text(loaded)
except MnistCeError as error:
    (folder / str(rank())).write_text(f"{type(error).__name__} {error.exit_code}")
"""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("equal", ["7", "7"]),
        ("fails", ["RunError 1", "TrainingError 1"]),
        ("differs", ["DataError 1", "DataError 1"]),
    ],
)
def test_the_main_process_loads_first(case: str, expected: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    process = torchrun(str(script), case, str(tmp_path))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == expected
