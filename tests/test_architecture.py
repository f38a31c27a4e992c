"""Importing the package, or asking for help, imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mnist_ce


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running the code."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", ["['--help']", "['train', '--help']", "['train', '--epoch']"])
def test_help_and_usage_errors_import_nothing_heavy(arguments: str) -> None:
    loaded = loaded_by(f"from mnist_ce.cli import main\nmain({arguments})")
    assert not loaded & {"torch", "numpy", "torchvision", "matplotlib", "scipy", "PIL", "tqdm"}


def test_import_of_the_package_is_lazy() -> None:
    assert not loaded_by("import mnist_ce") & {"torch", "numpy", "typer", "pydantic"}
    assert "torch" in loaded_by("from mnist_ce import MLP")
    assert set(dir(mnist_ce)) == {"MLP", "evaluate", "load_model", "predict", "train"}


def test_the_training_path_does_not_import_the_formulas() -> None:
    assert not loaded_by("import mnist_ce.training.trainer") & {"scipy", "sklearn"}
    module = "mnist_ce.explain.reference_losses"
    code = f"import mnist_ce.training.trainer, sys\nprint({module!r} in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
