"""Two processes on this machine, started by torchrun, against one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.cli import main
from mnist_ce.runs.checkpoint import load_state_dict
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.Popen(
        [*command, "-m", "mnist_ce", "train", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all of it can be ended
    )


@pytest.fixture
def flags(small_settings: dict[str, Any]) -> list[str]:
    """300 images in batches of 43: shares of 22 and 21, and in the last batch of 42."""
    own = {"train.step": "plain", "augment.rotation_degrees": 10.0, "average.decay": 0.9}
    settings = {**small_settings, "run.plots": "false", "train.batch_size": 43, **own}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def test_two_processes_do_what_one_does(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses agree, and so do the weights; one process continues what two began."""
    arguments = [*flags, "--verbose", "--set", "run.log_interval=1", "--name"]
    process = torchrun(*arguments, "two")
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert out.count("test images correct") == 1  # one of them tells it
    assert "distributed step" in errors
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
    one, two = (load_state_dict(tmp_path / name / "model.pt") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-4)
    more = {"run.output": str(tmp_path), "train.epochs": 4}
    whole, found = (train(None, more, resume=name) for name in ("one", "two"))
    assert found.record["processes"] == 1
    assert found.rows[-1]["test_loss"] == pytest.approx(whole.rows[-1]["test_loss"], abs=1e-4)


def test_more_processes_than_images_and_a_killed_one(flags: list[str], tmp_path: Path) -> None:
    """Batches of one leave a process without an image; one that is killed ends them all."""
    own = ("train.epochs=100000", "train.batch_size=1", "run.save_every_seconds=0.05")
    process = torchrun(*flags, "--name", "a", *(part for value in own for part in ("--set", value)))
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "a" / "resume.pt").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(worker(tmp_path, rank=1), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert "error: another process of this run has ended" in errors or "error: stopped" in errors
    assert "--resume" in errors
    more = len(RunDir(tmp_path / "a").read_metrics()) + 2
    result = train(None, {"run.output": str(tmp_path), "train.epochs": more}, resume="latest")
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
