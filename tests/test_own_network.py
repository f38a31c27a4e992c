"""The Python in docs/own-network.md runs, and its network is as accurate as promised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mnist_ce.training import trainer

DOCUMENT = (Path(__file__).parent.parent / "docs" / "own-network.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def run(blocks: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "own-network.md", "exec"), names)
    return names


@pytest.mark.usefixtures("small_data", "one_thread")
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "draw_plots", lambda *_: None)  # three times four plots
    names = run(BLOCKS)
    assert names["trained"].record.custom["model"].endswith("CNN")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


@pytest.mark.slow
def test_the_network_reaches_its_accuracy(
    mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_CE_DATA_DIR", str(mnist_dir))
    assert run(BLOCKS[:1])["result"].record.test_accuracy >= 0.992
