"""What each part of the package imports. The layers are a contract in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mnist_ce
from mnist_ce.system.files import version

HEAVY = {"torch", "numpy", "torchvision", "matplotlib", "scipy", "PIL", "tqdm"}
MAIN = "from mnist_ce.cli import main; main"
TRAINER = "import mnist_ce.training.trainer"
READER = "import mnist_ce.evaluation.evaluate, mnist_ce.prediction.predict"
FORMULAS = (
    "from mnist_ce.explain import reference_losses as f; "
    "f.cross_entropy([[2, 1, .1]], [0]); f.binary_cross_entropy(f.sigmoid([1.2]), [1])"
)
PREDICT = (
    "from PIL import Image; Image.new('L', (4, 20), 255).save('one.png'); "
    "from mnist_ce.cli import main; assert main(['predict', 'one.png']) == 0"
)
PLOTS = "from mnist_ce.report.plots import canvas, curves, evaluation, explanation, images"
DRAW = f"{PLOTS}; curves.draw_curves(canvas.Heading('', ''), [])"

# A statement, what a fresh interpreter must not have imported after it, and what it must have.
CASES = {
    "help": (f"{MAIN}(['--help'])", {*HEAVY, "pydantic"}, {"typer"}),
    "help of a command": (f"{MAIN}(['train', '--help'])", HEAVY, {"mnist_ce.cli.train"}),
    "usage error": (f"{MAIN}(['train', '--epoch'])", HEAVY, {"mnist_ce.cli.train"}),
    "runs": (f"{MAIN}(['runs', '--output', 'x'])", HEAVY, {"mnist_ce.runs.run_dir"}),
    "show-config": (f"{MAIN}(['train', '--show-config'])", HEAVY, {"mnist_ce.config"}),
    "predict": (PREDICT, {"torchvision", "matplotlib", "pandas"}, {"mnist_ce.prediction.predict"}),
    "package": ("import mnist_ce", {*HEAVY, "typer", "pydantic"}, {"mnist_ce"}),
    "lazy name": ("from mnist_ce import MLP", {"typer"}, {"torch"}),
    "trainer": (TRAINER, {"scipy", "sklearn", "mnist_ce.explain"}, {"mnist_ce.network.objective"}),
    "reader": (READER, {"sklearn", "mnist_ce.explain"}, {"mnist_ce.network.objective"}),
    "formulas": (FORMULAS, {"torch"}, {"numpy"}),
    "plots": (PLOTS, {"matplotlib"}, {"mnist_ce.report.plots"}),
    "drawing": (DRAW, {"matplotlib.pyplot"}, {"matplotlib.figure"}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_statement_imports(name: str, tmp_path: Path) -> None:
    statement, forbidden, required = CASES[name]
    command = [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert not imported & forbidden
    assert required <= imported


def test_the_public_names() -> None:
    assert set(dir(mnist_ce)) == {"MLP", "evaluate", "load_model", "predict", "train"}
    assert mnist_ce.__version__ == version()
