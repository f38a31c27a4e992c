"""The wheel, installed somewhere else, is the whole program: recipes and weights included."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mnist_ce.config import shipped_configs
from mnist_ce.runs.run_dir import find_checkpoint

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = [ROOT / "checkpoints" / name for name in ("mnist", "world")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--no-compile", "--target", str(folder), str(wheel))
    return folder


def run(*arguments: str, cwd: Path | None = None, site: Path | None = None) -> str:
    """Run Python and return what it prints; with `site`, with its modules before all others."""
    paths = {} if site is None else {"PYTHONPATH": str(site)}
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", **paths}
    command = [sys.executable, *arguments]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_wheel_holds_recipes_weights_and_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for source in (ROOT / "configs", ROOT / "examples", *WEIGHTS):
        files = {f"mnist_ce/shipped/{source.name}/{path.name}": path for path in source.iterdir()}
        assert files.keys() == {name for name in contents if f"/shipped/{source.name}/" in name}
        assert all(contents[name] == path.read_bytes() for name, path in files.items())
    assert "mnist_ce/py.typed" in contents
    outside = ("tests/", "benchmarks/", "scripts/", "generators/", "docs/")
    assert not any(name.startswith(outside) for name in contents)


def test_the_sdist_holds_what_the_readme_links(tmp_path: Path) -> None:
    run("-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path), cwd=ROOT)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert {"CHANGELOG.md", "CONTRIBUTING.md"} <= names
    missing = [link for link in links if not any(name.startswith(link) for name in names)]
    assert missing == []


def test_help_and_recipes_work_elsewhere(site: Path, tmp_path: Path) -> None:
    where = "import mnist_ce; print(mnist_ce.__file__)"
    assert Path(run("-c", where, cwd=tmp_path, site=site).strip()).is_relative_to(site)
    assert "evaluate" in run("-m", "mnist_ce", "--help", cwd=tmp_path, site=site)
    words = ("-m", "mnist_ce", "train", "--config", "best", "--show-config")
    shown = run(*words, cwd=tmp_path, site=site)
    assert all(name in shown for name in shipped_configs())
    assert "rotation_degrees = 10" in shown


def test_predict_works_elsewhere_with_the_shipped_weights(site: Path, tmp_path: Path) -> None:
    arguments = ("-m", "mnist_ce", "predict", "examples/seven.jpg", "--json")
    (prediction,) = json.loads(run(*arguments, cwd=tmp_path, site=site))
    assert prediction["label"] == 7
    for folder in WEIGHTS:
        assert find_checkpoint(folder.name, tmp_path).samefile(folder / "model.pt")
