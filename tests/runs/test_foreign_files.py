"""Files of a run that are no files: pipes, devices, folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ce.cli import main
from mnist_ce.training.callbacks import TrainResult


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, train_small_in: Callable[..., TrainResult]
) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_small_in(folder, "a", data__validation_size=100)
    return folder


@pytest.mark.parametrize("name", ["run.json", "metrics.csv", "steps.csv", ".lock", "config.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_some_size_are_opened(
    name: str, kind: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(runs / "a", tmp_path / "a") / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    for arguments in (
        ["runs"],
        ["evaluate", str(path.parent), "--verify"],
        ["train", "--resume", "a"],
    ):
        assert main([*arguments, "--output", str(tmp_path)]) in (0, 1, 2)
        assert "Traceback" not in capsys.readouterr().err
