"""What a user can get wrong: input, exit code, message. Every part of the program adds its cases.

A message is one line on stderr that begins with `error:` or is Typer's own; never a traceback.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.network.model import MLP


@dataclass(frozen=True)
class Case:
    """A command line with `{}` for the folder that `prepare` filled."""

    name: str
    arguments: str
    exit_code: int
    message: str
    prepare: Callable[[Path], None] = lambda folder: None


def text(path: str, content: str | bytes) -> Callable[[Path], None]:
    """Write a file."""
    data = content.encode() if isinstance(content, str) else content

    def prepare(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return prepare


def config(content: str | bytes) -> Callable[[Path], None]:
    """Write c.toml."""
    return text("c.toml", content)


def state(
    change: Callable[[dict[str, torch.Tensor]], object] = lambda weights: None,
) -> Callable[[Path], None]:
    """Save the weights of a small network as x.pt, changed."""

    def prepare(folder: Path) -> None:
        weights = MLP([8], 10).state_dict()
        changed = change(weights)
        torch.save(weights if changed is None else changed, folder / "x.pt")

    return prepare


class Harmful:
    """A pickle that would write a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("harm-done"),))


def harmful_pickle(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Harmful(), protocol=2))
        archive.writestr("archive/version", "3\n")


def truncated_zip(folder: Path) -> None:
    state()(folder)
    content = (folder / "x.pt").read_bytes()
    (folder / "x.pt").write_bytes(content[: len(content) // 2])


def compressed_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))


def existing_run(folder: Path) -> None:
    (folder / "runs" / "old").mkdir(parents=True)


def run_files(record: object) -> Callable[[Path], None]:
    """Make a run's folder with an empty config and this record: none where it is empty."""

    def prepare(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / "config.toml").write_text("")
        if record:
            content = record if isinstance(record, str) else json.dumps(record)
            (folder / "a" / "run.json").write_text(content)

    return prepare


def tiny_mnist(change: Callable[[Path], None] = lambda folder: None) -> Callable[[Path], None]:
    """Put four IDX files that are not MNIST's into the data folder, then spoil one more."""

    def prepare(folder: Path) -> None:
        for part, num in (("train", 60), ("t10k", 20)):
            images = b"\0\0\x08\x03" + np.array([num, 28, 28], ">u4").tobytes() + bytes(num * 784)
            labels = b"\0\0\x08\x01" + np.array([num], ">u4").tobytes() + bytes(num)
            for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
                (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        change(folder)

    return prepare


def image(name: str, size: tuple[int, int] = (28, 28)) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        Image.new("L", size, 255).save(folder / name)

    return prepare


def truncated_image(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (folder / "x.png").write_bytes(buffer.getvalue()[:200])


TRAIN = "train --dataset mnist --data-dir {} --mirror http://127.0.0.1:9/ --output {}/runs"
CHECK = "evaluate {}/x.pt --data-dir {}"
PREDICT = "predict {}/x.png --checkpoint {}/good.pt"
CONFIG = "train -c {}/c.toml"


def good_network(also: Callable[[Path], None] = lambda folder: None) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        torch.save(MLP([8], 10).state_dict(), folder / "good.pt")
        also(folder)

    return prepare


CASES = [
    # The command line
    Case("no such command", "trian", 2, "No such command"),
    Case("no such option", "train --epoch 3", 2, "No such option"),
    Case("not a number", "train --epochs many", 2, "valid integer"),
    Case("negative epochs", "train --epochs -1", 2, "train.epochs = -1"),
    Case("no epochs", "train --epochs 0", 2, "train.epochs = 0"),
    Case("batch size 0", "train -b 0", 2, "train.batch_size = 0"),
    Case("negative rate", "train --lr -0.1", 2, "optimizer.learning_rate = -0.1"),
    Case("rate is NaN", "train --lr nan", 2, "optimizer.learning_rate = nan"),
    Case("momentum of 1", "train --momentum 1", 2, "optimizer.momentum = 1"),
    Case("negative seed", "train --seed -1", 2, "train.seed = -1"),
    Case("unknown dataset", "train --dataset cifar", 2, "data.dataset = 'cifar'"),
    Case("unknown device", "train --device tpu", 2, "must be auto, cpu, mps, cuda or cuda:N"),
    Case("unknown step", "train --step quick", 2, "train.step = 'quick'"),
    Case("unknown --set key", "train --set train.epoch=3", 2, "did you mean train.epochs?"),
    Case("--set without value", "train --set train.epochs", 2, "section.key=value"),
    Case("--set with wrong type", "train --set train.epochs=ten", 2, "train.epochs = 'ten'"),
    Case("--resume with --config", "train --resume x -c fast", 2, "--resume"),
    # The config
    Case("no such config", "train -c nothing.toml", 2, "neither a file nor one of"),
    Case("not TOML", CONFIG, 2, "not valid TOML", config("[train\n")),
    Case("not text", CONFIG, 2, "not valid TOML", config(b"\xff\xfe\0")),
    Case("unknown section", CONFIG, 2, "tarin", config("[tarin]\na = 1")),
    Case(
        "unknown key",
        CONFIG,
        2,
        "did you mean optimizer.learning_rate?",
        config("[optimizer]\nlearningrate = 1"),
    ),
    Case("section is no table", CONFIG, 2, "train", config("train = 3")),
    Case("epochs is text", CONFIG, 2, "train.epochs", config('[train]\nepochs = "3"')),
    Case("width 0", "train --set model.hidden=[0]", 2, "model.hidden"),
    Case("a network too large", "train --set model.hidden=[65536,65536]", 2, "model.hidden makes"),
    Case("too many epochs", "train --epochs 1000000000000", 2, "train.epochs"),
    Case("a config too large", CONFIG, 2, "more than", config("#" * 2_000_000)),
    Case("a number too long", CONFIG, 2, "c.toml", config(f"[train]\nepochs = {'9' * 5000}")),
    Case("patience alone", "train --set train.patience=2", 2, "data.validation_size"),
    Case(
        "patience and one-cycle",
        "train --set train.patience=2 --set data.validation_size=100 --set schedule.kind=one-cycle",
        2,
        "whose length is fixed",
    ),
    Case(
        "Nesterov without momentum",
        "train --momentum 0 --set optimizer.nesterov=true",
        2,
        "momentum above 0",
    ),
    Case("one class", "train --set data.classes=[3]", 2, "at least two classes"),
    # The device
    Case("no CUDA", f"{TRAIN} --device cuda:7", 2, "device 'cuda:7' is not there", tiny_mnist()),
    Case(
        "wrong step for the device",
        f"{TRAIN} --device cpu --step cuda-graph",
        2,
        "does not run on cpu",
    ),
    # The data
    Case("no data, no net", TRAIN, 1, "127.0.0.1:9"),
    Case("altered data", TRAIN, 1, "train-images-idx3-ubyte.gz", tiny_mnist()),
    Case(
        "truncated data",
        TRAIN,
        1,
        "train-images-idx3-ubyte.gz",
        tiny_mnist(text("train-images-idx3-ubyte.gz", b"\x1f\x8b")),
    ),
    # Runs
    Case("run exists", f"{TRAIN} --name old --dry-run", 1, "127.0.0.1:9", existing_run),
    Case("no run to resume", "train --resume nothing --output {}", 1, "there is no run nothing"),
    Case(
        "nothing to resume", "train --resume latest --output {}", 1, "there is no interrupted run"
    ),
    Case("name taken", f"{TRAIN} --name old", 2, "is never overwritten", existing_run),
    Case("name with a slash", f"{TRAIN} --name a/b", 2, "run.name = 'a/b'"),
    Case("hidden name", f"{TRAIN} --name .a", 2, "run.name = '.a'"),
    Case("no folder", "train --output {}/file/runs", 1, "is not a folder", text("file", "")),
    Case("a folder that is no run", "train --resume {}/runs/old", 1, "no run", existing_run),
    Case("no record", "train --resume {}/a", 1, "it has no run.json", run_files({})),
    Case("a record of text", "train --resume {}/a", 1, "not valid JSON", run_files("hello")),
    Case(
        "a record of the future",
        "train --resume {}/a",
        1,
        "format_version 2",
        run_files({"format_version": 2}),
    ),
    Case(
        "another batch size",
        "train --resume {}/a -b 3",
        2,
        "train.batch_size cannot change",
        run_files({"format_version": 1}),
    ),
    Case("verify no run", "evaluate {} --verify", 1, "there is no run"),
    Case("verify nothing", "evaluate --verify", 2, "needs the name of a run"),
    Case(
        "verify an unfinished run",
        "evaluate {}/a --verify",
        1,
        "is not finished",
        run_files({"format_version": 1}),
    ),
    # Checkpoints
    Case("no checkpoint", "evaluate {}/x.pt", 1, "neither a file nor a run"),
    Case("empty run folder", "evaluate {}", 1, "has no model.pt"),
    Case("checkpoint is text", CHECK, 1, "not a file that torch.save wrote", text("x.pt", "hello")),
    Case("checkpoint is empty", CHECK, 1, "not a file that torch.save wrote", text("x.pt", "")),
    Case("truncated checkpoint", CHECK, 1, "damaged", truncated_zip),
    Case("compressed checkpoint", CHECK, 1, "compressed", compressed_zip),
    Case("pickle with code", CHECK, 1, "code is never run", harmful_pickle),
    Case("not a dict", CHECK, 1, "a plain state_dict", state(lambda w: [1, 2])),
    Case("whole model's keys", CHECK, 1, "plain state_dict", state(lambda w: {"model": w})),
    Case("other layer names", CHECK, 1, "l1, l2", state(lambda w: {"fc1.weight": w["l1.weight"]})),
    Case(
        "missing bias",
        CHECK,
        1,
        "l2.bias",
        state(lambda w: {k: v for k, v in w.items() if k != "l2.bias"}),
    ),
    Case(
        "wrong shape",
        CHECK,
        1,
        "has shape",
        state(lambda w: w.update({"l2.weight": torch.zeros(10, 9)})),
    ),
    Case(
        "NaN weights",
        CHECK,
        1,
        "NaN",
        state(lambda w: w.update({"l1.bias": torch.full((8,), torch.nan)})),
    ),
    Case(
        "whole numbers",
        CHECK,
        1,
        "floats",
        state(lambda w: w.update({"l1.bias": torch.zeros(8, dtype=torch.long)})),
    ),
    Case(
        "2^40 elements in a small file",
        CHECK,
        1,
        "the file holds fewer",
        state(
            lambda w: w.update(
                {
                    "l1.weight": torch.zeros(1).expand(2**30, 784),
                    "l1.bias": torch.zeros(1).expand(2**30),
                }
            )
        ),
    ),
    Case("std of 0", f"{CHECK} --input-std 0", 2, "--input-std", state()),
    Case("mean of nan", f"{CHECK} --input-mean nan", 2, "--input-mean", state()),
    Case("infinite std", f"{CHECK} --input-std inf", 2, "--input-std", state()),
    Case("no such split", f"{CHECK} --split dev --dataset synthetic", 2, "split", state()),
    # Images
    Case("no image", PREDICT, 1, "x.png", good_network()),
    Case("image of 0 bytes", PREDICT, 1, "x.png", good_network(text("x.png", ""))),
    Case("image is text", PREDICT, 1, "x.png", good_network(text("x.png", "hello"))),
    Case("truncated image", PREDICT, 1, "x.png", good_network(truncated_image)),
    Case("top-k of 0", f"{PREDICT} --top-k 0", 2, "top-k", good_network(image("x.png"))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_gets_one_clear_line(
    case: Case,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    # Another test may have unpacked MNIST in the cache.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MNIST_CE_DATA_DIR", raising=False)
    case.prepare(tmp_path)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}

    exit_code = main(case.arguments.replace("{}", str(tmp_path)).split())

    err = capsys.readouterr().err
    assert exit_code == case.exit_code, err
    assert case.message.lower() in err.lower()
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1, err
    # Nothing is lost, and no run is left half made.
    after = {path: path.stat().st_size for path in tmp_path.rglob("*") if "MNIST" not in str(path)}
    assert before.items() <= after.items() | before.items()
    assert not [path for path in after if path.name in ("model.pt", "harm-done")]
