"""Every command and every piece of Python in the README runs, and every command of the lessons."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mnist_ce import predict, train
from mnist_ce.cli import main
from mnist_ce.system.errors import StoppedError
from mnist_ce.training import trainer
from mnist_ce.training.callbacks import StopFlag
from scripts.draw_examples import EXAMPLES
from scripts.draw_examples import draw as draw_example
from scripts.make_notebook import notebook

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LESSONS = (ROOT / "docs" / "lessons.md").read_text()
INSTALLATION = ("pip", "python -m pip", "python -m venv", "python -m pytest")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots of each run, which take most of the time; `report` draws them."""
    monkeypatch.setattr(trainer, "draw_plots", lambda *_: None)


def draw(path: Path, text: str) -> None:
    """Write digits in dark ink on bright paper."""
    picture = Image.new("L", (60 + 60 * len(text), 140), 235)
    font = ImageFont.load_default(size=90)
    ImageDraw.Draw(picture).text((35, 15), text, fill=30, font=font)
    picture.save(path)


@pytest.mark.usefixtures("small_data", "_no_plots")
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photo.jpg", "7")
    draw(tmp_path / "postcode.png", "8 0 5")
    ours = [line for line in commands() if line.startswith("mnist-ce")]
    assert len(ours) > 10
    for line in ours:
        if "--resume latest" in line:  # something must have been interrupted
            with pytest.raises(StoppedError):
                train(None, {"train.epochs": 1}, stop=StopFlag(15))
        assert main(shlex.split(line)[1:]) == 0, line


def test_all_other_commands_install_or_test() -> None:
    for line in commands():
        for part in line.split("&&"):
            words = part.strip()
            assert words.startswith(("mnist-ce", ". ", *INSTALLATION)), words


@pytest.mark.usefixtures("small_data", "_no_plots")
def test_the_lessons_show_what_their_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = "\n".join(re.findall(r"^```console\n(.*?)^```", LESSONS, re.MULTILINE | re.DOTALL))
    shown = [block.partition("\n") for block in re.split(r"^\$ ", blocks, flags=re.MULTILINE)[1:]]
    inline = re.findall(r"`(mnist-ce train --set [^`]*)`", LESSONS)
    assert len(shown) > 6
    assert len(inline) == 2
    for command, _, output in [*shown, *((line, "", "…") for line in inline)]:
        assert main(shlex.split(command)[1:]) == 0, command
        pattern = ".*".join(re.escape(part.strip("\n")) for part in output.split("…"))
        printed = capsys.readouterr().out.strip("\n")
        assert re.fullmatch(rf"\n*{pattern}\n*", printed, re.DOTALL), command
    assert (tmp_path / "why.png").is_file()
    assert (tmp_path / "lessons.html").is_file()
    lessons = (ROOT / "docs" / "lessons.ipynb").read_text()
    assert lessons == notebook(LESSONS), "run: python -m scripts.make_notebook"
    cells = [cell["source"] for cell in json.loads(lessons)["cells"] if cell["cell_type"] == "code"]
    assert "\n".join(cells).splitlines() == [f"!{command}" for command, *_ in shown]


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


@pytest.mark.usefixtures("small_data", "_no_plots")
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "seven.png", "7")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.usefixtures("small_data", "_no_plots")
def test_the_page_for_researchers_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_small: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnist_ce.training.tune.load_dataset", load_small)
    monkeypatch.setitem(sys.modules, "wandb", wandb := Mock())
    text = (ROOT / "docs" / "researchers.md").read_text()
    (space,) = blocks("toml", text)
    Path("space.toml").write_text(space)
    for line in "".join(blocks("sh", text)).splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    (code,) = blocks("python", text)
    exec(compile(code, "researchers.md", "exec"), {})
    run = wandb.init.return_value
    assert [name for name, *_ in run.method_calls] == ["log", "finish"]


def test_files_named_in_the_tree_exist() -> None:
    for place in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", place):
            folders = (ROOT, ROOT / "mnist_ce", ROOT / "mnist_ce" / "training")
            assert any((folder / name).exists() for folder in folders), name


def test_the_reading_path_has_the_length_that_the_readme_says() -> None:
    section = README.partition("## Reading the code")[2].partition("| place")[0]
    length = re.match(r"\s*About ([\d,]+) lines", section)
    files = re.findall(r"`(\w+/[\w/]+\.py)`", section)
    num_lines = sum(len((ROOT / "mnist_ce" / f).read_text().splitlines()) for f in files)
    assert length is not None
    assert len(files) > 10
    assert abs(num_lines - int(length[1].replace(",", ""))) <= 100
