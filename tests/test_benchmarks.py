"""The benchmarks start, and those that the other tests do not touch run to their end."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.data.dataset import Split

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = [
    path.name for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text("utf-8")
]


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a benchmark find its neighbours, as it does when it is started by its path."""
    monkeypatch.syspath_prepend(str(FOLDER))


def start(name: str, arguments: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        start(name, ["--help"], monkeypatch)
    assert stopped.value.code == 0
    assert f"usage: {name}" in capsys.readouterr().out


def test_contact_sheet_of_distortions(
    tiny_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_CE_DATA_DIR", str(tiny_data_dir))
    sheet = tmp_path / "sheet.png"
    size = ["--dataset", "synthetic", "--rows", "1", "--columns", "3"]
    start("distortions.py", [*size, "--config", "best", "--out", str(sheet)], monkeypatch)
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("L"))
    height, width = pixels.shape
    assert height / width == pytest.approx(10 / 4, rel=0.05)  # ten classes; one and three columns
    assert (pixels < 64).mean() > 0.02  # ink


def test_cost_of_distortions(capsys: pytest.CaptureFixture[str]) -> None:
    measure = runpy.run_path(str(FOLDER / "step.py"))["distortion"]
    images = torch.randint(0, 256, (256, 28, 28), dtype=torch.uint8)
    measure(Split(images, torch.randint(0, 10, (256,))), "best", 1, as_json=False)
    printed = capsys.readouterr().out
    assert "| plain step |" in printed
    assert "| fast step |" in printed
