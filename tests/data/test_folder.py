"""Folders of labelled images, and one writer's digits from images to an adapted network."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.folder import read_folder
from mnist_ce.data.splits import DIGITS, Dataset, Split, to_splits
from mnist_ce.data.synthetic import Style, draw, generate
from mnist_ce.system.errors import DataError

# One who writes 0 with a slash and 1 with a long upstroke, and nothing else.
WRITER = {
    0: Style(
        0, 1.0, (((0.3, 0.0), (-0.3, 0.5), (0.0, 1.0), (0.3, 0.0)), ((0.5, 0.0), (-0.5, 1.0)))
    ),
    1: Style(1, 1.0, (((-0.45, 0.8), (0.0, 0.0), (0.02, 0.5), (0.0, 1.0)),)),
}


def write(folder: Path, num_each: int, name: str = "{label}/{index}.png") -> None:
    """Write pages of 90×90 pixels with one digit each, dark on bright."""
    generator = torch.Generator().manual_seed(3)
    for label, style in WRITER.items():
        for index, digit in enumerate(draw(style, num_each, generator)):
            page = Image.new("L", (90, 90), 240)
            ink = Image.fromarray(digit.numpy()).resize((56, 56))
            page.paste(30, (20, 15), ink)
            path = folder / name.format(label=label, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            page.save(path)


def read(folder: Path) -> tuple[Split, Split | None, tuple[str, ...]]:
    splits, class_names = to_splits(read_folder(folder), "")
    return splits["train"], splits.get("test"), class_names


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_labels_from_folders_or_names_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "a", 6)
    write(tmp_path / "b", 6, "{label}_{index}.PNG")
    write(tmp_path / "c", 6, "scans/{label}/9{index}.png")
    write(tmp_path / "d", 6, "images/train-{index}0{label}-{label}.png")
    first, test, class_names = read(tmp_path / "a")
    assert (test, class_names) == (None, DIGITS)  # ten outputs, as the digits' networks
    assert first.labels.bincount().tolist() == [6, 6]
    assert first.images.shape == (12, 28, 28)
    assert int(first.images.max()) > 200  # bright on black, as MNIST
    for other in ("b", "c", "d"):
        assert same(read(tmp_path / other)[0], first)
    shutil.copy(tmp_path / "a/0/1.png", tmp_path / "a/0/copy.png")
    assert same(read(tmp_path / "a")[0], first)


def test_what_is_left_out_is_named(tmp_path: Path, log_warnings: Callable[[], list[str]]) -> None:
    write(tmp_path, 3)
    (tmp_path / "1/broken.png").write_bytes(b"hello")
    Image.new("L", (90, 90), 240).save(tmp_path / "1/white.png")
    shutil.copy(tmp_path / "1/1.png", tmp_path / "photo.png")
    for hidden in ("1/._1.png", ".git/1/x.png", "__MACOSX/1/x.png", "1/notes.txt"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"x")
    assert len(read(tmp_path)[0]) == 6
    (warning,) = log_warnings()
    assert warning.startswith(f"{tmp_path}: 3 of 9 images are left out: 1/broken.png (is not an ")
    assert warning.endswith("1/white.png (no ink found); photo.png (no label)")


def test_names_that_cannot_be_printed_and_pipes_are_left_out(
    tmp_path: Path, log_warnings: Callable[[], list[str]]
) -> None:
    write(tmp_path, 3)
    os.mkfifo(tmp_path / "0/pipe.png")  # which nobody writes into
    for name in ("\x1b[2J", "no UTF-8 \udcff"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "1/1.png", tmp_path / name / f"{name}.png")
        shutil.copy(tmp_path / "1/1.png", tmp_path / "1" / f"{name}.png")
    train, _, class_names = read(tmp_path)
    assert (len(train), class_names) == (6, DIGITS)
    (warning,) = log_warnings()
    assert ": 2 of 10 images are left out: ?[2J/?[2J.png (no label); no UTF-8 ?/no" in warning


def test_other_classes_and_a_split_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, 4, "Training/class {label}/{index}.png")
    write(tmp_path, 2, "testing/class {label}/{index}.png")
    train_split, test, class_names = read(tmp_path)
    assert class_names == ("class 0", "class 1")
    assert test is not None
    assert (len(train_split), len(test)) == (8, 4)
    page = np.asarray(Image.open(tmp_path / "Training/class 0/0.png").resize((28, 28), 4))
    difference = 255 - page.astype(int) - train_split.images.numpy().astype(int)  # the whole page
    assert np.abs(difference).max(axis=(1, 2)).min() <= 1


def test_an_image_in_both_folders_is_a_test_image(
    tmp_path: Path, log_warnings: Callable[[], list[str]]
) -> None:
    write(tmp_path, 4, "train/{label}/{index}.png")
    for name in ("0/0", "0/1", "1/2", "1/3"):
        copy = tmp_path / f"test/{name}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"train/{name}.png", copy)
    dataset = load_dataset(f"folder:{tmp_path}", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (4, 4)
    (warning,) = log_warnings()
    assert warning.startswith(
        f"4 of folder:{tmp_path}'s 8 training images are among the test images"
    )


def test_a_folder_without_labelled_images(tmp_path: Path) -> None:
    for folder, problem in ((tmp_path, "has no labelled image"), (tmp_path / "a", "is not a fol")):
        with pytest.raises(DataError, match=problem):
            read_folder(folder)


@pytest.mark.slow
def test_a_network_is_adapted_to_a_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, others = generate(500, seed=1), generate(200, seed=2)
    mnist = Dataset("mnist", digits, others, DIGITS)
    monkeypatch.setattr(dataset_module, "DatasetFiles", lambda *_, **__: Mock(load=lambda: mnist))
    monkeypatch.chdir(tmp_path)
    write(Path("writer"), 30)

    def accuracy(*arguments: str) -> float:
        capsys.readouterr()
        assert main(["evaluate", *arguments, "--threads", "1", "--json"]) == 0
        out, err = capsys.readouterr()
        assert "warning" not in err or "mnist" in arguments[0]  # whose data is drawn here
        return float(json.loads(out)["accuracy"])

    own, classic = ("--dataset", "folder:writer"), ("--dataset", "mnist")
    before, kept = accuracy("mnist", *own), accuracy("mnist", *classic)
    command = "train -c adapt --init mnist --dataset mnist+folder:writer --name after --epochs 12"
    assert main([*command.split(), "--threads", "1", "--set", "run.plots=false"]) == 0
    assert accuracy("after") >= max(0.75, before + 0.3)  # on the writer's test images
    assert accuracy("after", *classic) > kept - 0.05
    assert main(["compare", "mnist", "after", "--dataset", "folder:writer", "--threads", "1"]) == 0
    assert main(["evaluate", "after", "--verify", "--threads", "1"]) == 0
    record = json.loads(Path("checkpoints/after/run.json").read_text())
    assert record["dataset"] == f"mnist+folder:{tmp_path / 'writer'}"
    assert record["dataset_split"] == "12 of 60 images, a fifth of each class, are for testing"
    capsys.readouterr()
    write(Path("writer"), 31)  # one more of each
    assert main(["evaluate", "after", "--threads", "1"]) == 0
    assert "is not what " in capsys.readouterr().err
    assert main(["train", "--resume", "after", "--epochs", "13"]) == 1
    assert "was trained on other data" in capsys.readouterr().err


@pytest.mark.slow
def test_the_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/own-data.md").read_text()
    digits = generate(100, seed=1)
    mnist = Dataset("mnist", digits, generate(100, seed=2), DIGITS)
    monkeypatch.setattr(dataset_module, "DatasetFiles", lambda *_, **__: Mock(load=lambda: mnist))
    monkeypatch.chdir(tmp_path)
    write(Path("my-digits"), 5)
    tables = {"train.csv": digits, "mnist_train.csv": digits, "mnist_test.csv": mnist.test}
    for name, split in tables.items():
        rows = torch.cat([split.labels[:, None], split.images.flatten(1)], 1).numpy()
        np.savetxt(name, rows, fmt="%d", delimiter=",")
    np.savez("mnist.npz", x_train=digits.images.numpy(), y_train=digits.labels.numpy())
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert len(commands) == 9
    for command in commands:
        fast = ["--set", "run.plots=false"] if command[0] == "train" else []
        assert main([*command, *fast, "--threads", "1"]) == 0, command


def test_each_page_is_an_image(tmp_path: Path, log_warnings: Callable[[], list[str]]) -> None:
    digits = [Image.fromarray(image) for image in generate(3, seed=1).images.numpy()]
    blank = Image.new("L", (28, 28))
    for label, pages in enumerate([[digits[0], digits[1]], [digits[2], blank]]):
        (tmp_path / str(label)).mkdir()
        pages[0].save(tmp_path / f"{label}/x.tif", save_all=True, append_images=pages[1:])
    train, *_ = read(tmp_path)
    assert sorted(train.labels.tolist()) == [0, 0, 1]
    (warning,) = log_warnings()
    assert "1/x.tif (page 2: no ink found)" in warning
