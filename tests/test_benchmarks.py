"""The benchmarks and scripts start; the frozen generators are unchanged."""

from __future__ import annotations

import hashlib
import itertools
import json
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import Format, mean_deviation, median_range, print_table
from benchmarks.step import compare_augmentation
from generators import handwriting_styles, letters
from mnist_ce.data.splits import Split

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    f"{path.parent.name}.{path.stem}"
    for folder in ("benchmarks", "scripts")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text("utf-8")
]
FROZEN_SHA256 = {
    "hard_images_b": "6cc2fe41a2850b8e4d998bca8c2bc4a4609664b4372748fff177df55d9bb0be3",
    "handwriting_styles": "b2090b6313f799350b00482e57070affaa7a5e80fb533c0f4922610a55ea78dc",
    "letters": "673b9c408064927d230af27e87621fa67a77d3b2b8dd60ea1fb0255974c23770",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # imported above
def test_each_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(name, run_name="__main__")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: {name}" in shown
    assert f"python -m {name}" in shown


def test_cost_of_distortions(capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randint(0, 256, (256, 28, 28), dtype=torch.uint8)
    options = Namespace(augment="best", repeats=1, threads=1, busy=0, json=False)
    compare_augmentation(Split(images, torch.randint(0, 10, (256,))), options)
    printed = capsys.readouterr().out
    assert "| plain step |" in printed
    assert "| fast step |" in printed


def test_a_table_is_markdown_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = mean_deviation(1, 100, " %")
    columns: dict[str, Format] = {"kind": str, "seconds": median_range(1), "accuracy": accuracy}
    rows = [("a", [1.0, 2.0, 4.0], [0.5, 0.7]), ("b", None, [0.5])]
    print_table("Title", columns, rows, as_json=False)
    markdown = capsys.readouterr().out
    assert "| a | 2.0 (1.0 to 4.0) | 60.0 ± 14.1 % |\n| b |  | 50.0 % |\n" in markdown
    print_table("Title", columns, rows, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["rows"][0] == {"kind": "a", "seconds": [1, 2, 4], "accuracy": [0.5, 0.7]}
    assert "torch" in content["environment"]


@pytest.mark.parametrize("name", FROZEN_SHA256)
def test_a_measuring_generator_is_frozen(name: str) -> None:
    source = (ROOT / "generators" / f"{name}.py").read_bytes()
    assert hashlib.sha256(source).hexdigest() == FROZEN_SHA256[name]


@pytest.mark.parametrize(
    ("draw", "kinds"),
    [(letters.draw, letters.GLYPHS), (handwriting_styles.draw, handwriting_styles.STYLES)],
)
def test_everything_can_be_drawn_by_every_pen(draw: Any, kinds: Any) -> None:
    for number, (kind, pen) in enumerate(itertools.product(kinds, handwriting_styles.PENS)):
        image = draw(kind, pen, np.random.default_rng(number))
        assert image.mode == "L"
        assert 30 < max(image.size) < 600
        low, high = np.percentile(np.asarray(image), [0, 90])
        assert high - low > 90
