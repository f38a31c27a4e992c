"""The floors of the house hold, names are complete, and nothing heavy is imported unasked."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_ce

PACKAGE = Path(mnist_ce.__file__).parent

# A module or subpackage → its floor. Imports go to a lower floor or to the same one.
FLOORS = {
    **dict.fromkeys(
        ("errors", "files", "text", "config", "config_text", "device", "formulas", "distributed"), 0
    ),
    **dict.fromkeys(("glyph", "data", "model", "objective", "metrics", "calibration"), 1),
    **dict.fromkeys(("steps", "preprocessing", "task", "schedule", "progress"), 2),
    **dict.fromkeys(
        ("loop", "checkpoint", "records", "trained", "plots", "run_folder", "run_record"), 3
    ),
    **dict.fromkeys(("saving", "measuring", "run_setup"), 3),
    **dict.fromkeys(
        (
            *("trainer", "training", "evaluation", "prediction", "explanation", "export"),
            *("report", "report_page", "tensorboard", "comparison", "calibrating", "verification"),
        ),
        4,
    ),
    "cli": 5,
}


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "mnist_ce.")]
    return sorted(name for name in names if not name.endswith("__main__"))


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room(module: str) -> str:
    return module.split(".")[1]


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports, type checking aside."""
    tree = ast.parse(path_of(module).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnist_ce"):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if path_of(name).exists() else str(node.module) for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("mnist_ce.")}
    return found - {"mnist_ce"}


@pytest.mark.parametrize("module", modules())
def test_imports_never_go_upward(module: str) -> None:
    assert room(module) in FLOORS, f"give {room(module)} a floor"
    for imported in imports(module):
        assert FLOORS[room(imported)] <= FLOORS[room(module)], f"{module} imports {imported}"


def test_every_floor_names_a_room() -> None:
    assert {room(module) for module in modules()} == set(FLOORS)


def test_rooms_import_each_other_without_a_circle() -> None:
    edges = {name: {n for n in imports(name) if n != name} for name in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for imported in edges.get(name, ()):
                visit(imported, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def as_isort_does(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("module", [name for name in modules() if room(name) != "cli"])
def test_all_is_sorted_and_true(module: str) -> None:
    loaded = importlib.import_module(module)
    exported = getattr(loaded, "__all__", None)
    if exported is None:
        assert path_of(module).name == "__init__.py"
        return
    assert list(exported) == sorted(exported, key=as_isort_does)
    assert all(hasattr(loaded, name) for name in exported)


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
    assert not loaded_by("import mnist_ce.training") & {"scipy", "sklearn"}
    code = "import mnist_ce.training, sys\nprint('mnist_ce.formulas' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
