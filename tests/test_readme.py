"""Every fenced command and piece of Python of README and docs runs, in order, in a clean folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from mnist_ce import predict, train
from mnist_ce.cli import main
from mnist_ce.data.splits import Dataset
from mnist_ce.data.synthetic import generate
from mnist_ce.system.errors import StoppedError
from mnist_ce.training.callbacks import StopFlag
from scripts.draw_examples import EXAMPLES
from scripts.draw_examples import draw as draw_example
from scripts.make_notebook import notebook

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LESSONS = (ROOT / "docs" / "lessons.md").read_text()
LANGUAGES = {"sh", "console", "python", "toml", "text", "json", "nginx"}
# Of the developer's own folder, and not of a clean one.
LEFT_OUT = (
    "pip",
    "python -m",
    "git",
    "cd",
    "python3 -m venv",
    ". .venv",
    "ruff",
    "mypy",
    "lint",
    "pytest",
)
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Page:
    """What the blocks of a page share."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str = "") -> None:
        self.capsys, self.url, self.names = capsys, url, dict[str, Any]()

    def run(self, text: str) -> None:
        for language, block in blocks(text):
            assert language in LANGUAGES, language
            if language == "sh":
                for line in block.splitlines():
                    for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                        self.run_command(command.strip())
            elif language == "console":
                for command, _, output in (
                    one.partition("\n") for one in re.split(r"^\$ ", block, flags=re.M)[1:]
                ):
                    printed = self.run_command(command)
                    parts = (re.escape(part.strip("\n")) for part in output.split("…"))
                    assert re.fullmatch(rf"\n*{'.*'.join(parts)}\n*", printed, re.DOTALL), command
            elif language == "python":
                exec(compile(block, "page", "exec"), self.names)
            elif language == "toml":
                Path("space.toml").write_text(block)

    def run_command(self, command: str) -> str:
        """Run a command as a shell does, and return what it prints."""
        if not command or command.startswith(LEFT_OUT):
            return ""
        command, _, file = command.partition(" > ")
        program, *words = shlex.split(command)
        if program == "curl":
            url = self.url or pytest.skip("needs a server")
            words = [word.replace("http://127.0.0.1:8000", url) for word in words]
            return subprocess.run(["curl", "-sSf", *words], check=True, stdout=-1, text=True).stdout
        assert program == "mnist-ce"
        if words[-2:] == ["--resume", "latest"]:  # something must have been interrupted
            with pytest.raises(StoppedError):
                train(None, {"train.epochs": 1}, stop=StopFlag(15))
        words += ["--port", "0"] * (words[0] == "demo")
        self.capsys.readouterr()
        assert main(words) == 0, command
        printed = self.capsys.readouterr().out
        if file:
            Path(file).write_text(printed)
        return printed


@pytest.fixture
def clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples alone, where MNIST has 300 + 200 digits and no run has plots."""
    mnist = Dataset("mnist", generate(300, seed=1), generate(200, seed=2), tuple("0123456789"))
    files = SimpleNamespace(load=lambda: mnist)
    monkeypatch.setattr("mnist_ce.data.dataset.DatasetFiles", lambda *_, **__: files)
    # Plots of each run take most of the time; `report` draws them.
    monkeypatch.setattr("mnist_ce.training.trainer.draw_plots", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    return tmp_path


def write_own_data() -> None:
    """Write the files that docs/own-data.md says are there."""
    split = generate(400, seed=3)
    images, labels = split.images.numpy(), split.labels.numpy()
    header = ",".join(["label", *(f"pixel{n}" for n in range(784))])
    table = np.column_stack([labels, images.reshape(-1, 784)])
    for name, rows in (("train", table), ("mnist_train", table[:300]), ("mnist_test", table[300:])):
        np.savetxt(f"{name}.csv", rows, "%d", ",", header=header, comments="")
    np.savez("mnist.npz", x_train=images, y_train=labels)
    Path("emnist").mkdir()
    for name, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
        shape = np.array(array.shape, ">u4").tobytes()
        content = bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()
        Path(f"emnist/emnist-letters-train-{name}-ubyte").write_bytes(content)
    for number, (image, label) in enumerate(zip(images[:100], labels[:100], strict=True)):
        for folder in ("my-digits", "corrections"):
            Path(folder, str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - image).save(Path(folder, str(label), f"{number}.png"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("docs/demo.md", "docs/researchers.md")))
        for n in PAGES
    ],
)
def test_a_page_runs(
    name: str,
    clean_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    page = Page(capsys)
    monkeypatch.setitem(sys.modules, "wandb", wandb := Mock())
    if name in ("docs/own-data.md", "docs/demo.md"):
        write_own_data()
    if name == "docs/demo.md":
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "demo"))
        page.url = request.getfixturevalue("demo").url
        monkeypatch.setattr("webbrowser.open", lambda _: True)
        monkeypatch.setattr("mnist_ce.demo.server.serve", lambda *_: None)
        Path("token.txt").write_text("a token of some length")
    page.run((ROOT / name).read_text())
    if name == "docs/researchers.md":
        assert [call for call, *_ in wandb.init.return_value.method_calls] == ["log", "finish"]
    if name == "docs/own-network.md":
        assert page.names["trained"].record.custom["model"].endswith("CNN")


@pytest.mark.slow
def test_the_network_reaches_its_accuracy(
    mnist_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_CE_DATA_DIR", str(mnist_dir))
    page, text = Page(capsys), (ROOT / "docs" / "own-network.md").read_text()
    page.run(text[: text.index("```\n") + 4])
    assert page.names["result"].record.test_accuracy >= 0.992


def test_the_notebook_is_that_of_the_lessons() -> None:
    lessons = (ROOT / "docs" / "lessons.ipynb").read_text()
    assert lessons == notebook(LESSONS), "run: python -m scripts.make_notebook"
    cells = [cell["source"] for cell in json.loads(lessons)["cells"] if cell["cell_type"] == "code"]
    console = "".join(block for language, block in blocks(LESSONS) if language == "console")
    assert "\n".join(cells).splitlines() == [
        f"!{x}" for x in re.findall(r"^\$ (.*)", console, re.M)
    ]


def test_the_shipped_examples_are_read_and_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which has no folder `examples`
    for name, (text, *_) in EXAMPLES.items():
        records = predict(f"examples/{name}.jpg", multi=True)
        is_digit = text[0][0].isdigit()
        read = "".join(str(record.label) for record in records)
        assert read == "".join(text).replace(" ", "") or not is_digit
        assert {record.status for record in records} == {"ok" if is_digit else "rejected"}
    shipped = np.asarray(Image.open(ROOT / "examples" / "seven.jpg"), float)
    assert np.abs(np.asarray(draw_example("seven"), float) - shipped).mean() < 1


def test_files_named_in_the_tree_exist() -> None:
    for place in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", place):
            folders = (ROOT, ROOT / "mnist_ce", ROOT / "mnist_ce" / "training")
            assert any((folder / name).exists() for folder in folders), name


def test_the_reading_path_has_the_length_that_the_readme_says() -> None:
    section = README.partition("## Reading the code")[2].partition("| place")[0]
    length = re.search(r"About ([\d,]+) lines", section)
    files = re.findall(r"`(\w+/[\w/]+\.py)`", section)
    num_lines = sum(len((ROOT / "mnist_ce" / f).read_text().splitlines()) for f in files)
    assert length is not None
    assert len(files) >= 10
    assert abs(num_lines - int(length[1].replace(",", ""))) <= 100
