"""What each part of the package imports. The layers are a contract in pyproject.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_ce
from mnist_ce.system.files import version

HEAVY = {"torch", "numpy", "torchvision", "matplotlib", "scipy", "PIL", "tqdm"}
LIGHT = {*HEAVY, "typer", "pydantic"}
MAIN = "from mnist_ce.cli import main; main"
FORMULAS = (
    "from mnist_ce.explain import loss; import numpy as np; z = np.array([2, 1, 0.1]); "
    "loss.cross_entropy(z, 0); loss.binary_cross_entropy(z[:2], 1)"
)
IMAGE = "from PIL import Image; Image.new('L', (4, 20), 255).save('one.png')"
COMPARE = (
    "from mnist_ce.evaluation.comparison import compare_groups, mcnemar_p_value; import torch; "
    "mcnemar_p_value(1, 2); compare_groups(torch.eye(2, 4) > 0, torch.eye(3, 4) > 0)"
)
PLOTS = "from mnist_ce.report.plots import canvas, curves, evaluation, images"

# Statements for one interpreter each, and what must not have been imported after each of them.
CHAINS: dict[str, list[tuple[str, set[str]]]] = {
    "command line": [
        ("import mnist_ce", LIGHT),
        (f"{MAIN}(['--help'])", {*HEAVY, "pydantic"}),
        (f"{MAIN}(['train', '--help'])", HEAVY),
        (f"{MAIN}(['train', '--epoch'])", HEAVY),
        (f"{MAIN}(['runs', '--output', 'x'])", HEAVY),
        (f"{MAIN}(['train', '--show-config'])", HEAVY),
        (FORMULAS, {"torch"}),
        (PLOTS, {"matplotlib"}),
        ("curves.draw_curves('', '', [])", {"matplotlib.pyplot"}),
    ],
    "predict": [
        (f"{IMAGE}; {MAIN}(['predict', 'one.png'])", {"torchvision", "matplotlib", "pandas"})
    ],
    "package": [
        ("from mnist_ce import MLP", {"typer"}),
        ("import mnist_ce.training.trainer", {"scipy", "sklearn", "mnist_ce.explain"}),
        ("import mnist_ce.evaluation.evaluate, mnist_ce.prediction.predict", {"mnist_ce.explain"}),
        (COMPARE, {"torchvision", "scipy.stats", "matplotlib"}),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_statements_import(name: str, tmp_path: Path) -> None:
    report = "import json, sys; print(json.dumps(list(sys.modules)))"
    code = "\n".join(f"{statement}\n{report}" for statement, _ in CHAINS[name])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith('["')]
    for (statement, forbidden), modules in zip(CHAINS[name], answers, strict=True):
        assert not forbidden & set(json.loads(modules)), statement


def test_the_public_names() -> None:
    assert set(dir(mnist_ce)) == {"MLP", "Callback", "evaluate", "load_model", "predict", "train"}
    assert mnist_ce.__version__ == version()
