"""What a user can get wrong: input, exit code, and one line on stderr, never a traceback."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic.generate import generate, write_synthetic
from mnist_ce.network.model import MLP


@dataclass(frozen=True)
class Case:
    """A command line with `{}` for the folder that holds `files`."""

    arguments: str
    exit_code: int
    message: str
    files: dict[str, bytes] = field(default_factory=dict)


class Harmful:
    """A pickle that would write a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("harm-done"),))


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(data_pickle: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pickle)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def idx(*shape: int) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    return gzip.compress(header + bytes(int(np.prod(shape))))


WEIGHTS = dict(MLP([8], 10).state_dict())
GOOD = saved(WEIGHTS)
NO_BIAS = {name: tensor for name, tensor in WEIGHTS.items() if name != "l2.bias"}
ZERO = torch.zeros(1)  # 2^40 elements in a small file
HUGE = {**WEIGHTS, "l1.weight": ZERO.expand(2**30, 784), "l1.bias": ZERO.expand(2**30)}

# Four IDX files that are not MNIST's.
TINY_MNIST = {
    "train-images-idx3-ubyte.gz": idx(60, 28, 28),
    "train-labels-idx1-ubyte.gz": idx(60),
    "t10k-images-idx3-ubyte.gz": idx(20, 28, 28),
    "t10k-labels-idx1-ubyte.gz": idx(20),
}
CUT_MNIST = {**TINY_MNIST, "train-images-idx3-ubyte.gz": b"\x1f\x8b"}

TRAIN = "train --dataset mnist --data-dir {} --mirror http://127.0.0.1:9/ --output {}/runs"
CHECK = "evaluate {}/x.pt --data-dir {}"
RESUME = "train --resume {}/a"

# The command line alone: exit code 2.
WRONG_COMMANDS = {
    "trian": "No such command",
    "train --epoch 3": "No such option",
    "train --epochs many": "valid integer",
    "train --epochs 0": "train.epochs = 0",
    "train --epochs 1000000000000": "train.epochs",
    "train -b 0": "train.batch_size = 0",
    "train --lr -0.1": "optimizer.learning_rate = -0.1",
    "train --lr nan": "optimizer.learning_rate = nan",
    "train --momentum 1": "optimizer.momentum = 1",
    "train --momentum 0 --set optimizer.nesterov=true": "momentum above 0",
    "train --seed -1": "train.seed = -1",
    "train --dataset cifar": "data.dataset = 'cifar'",
    "train --device tpu": "must be auto, cpu, mps, cuda or cuda:N",
    "train --step quick": "train.step = 'quick'",
    f"{TRAIN} --device cpu --step cuda-graph": "does not run on cpu",
    "train --set train.epoch=3": "did you mean train.epochs?",
    "train --set train.epochs": "section.key=value",
    "train --set train.epochs=ten": "train.epochs = 'ten'",
    "train --set model.hidden=[0]": "model.hidden",
    "train --set model.hidden=[65536,65536]": "model.hidden makes",
    "train --set train.patience=2": "data.validation_size",
    "train --set train.patience=2 --set data.validation_size=100 --set schedule.kind=one-cycle": (
        "whose length is fixed"
    ),
    "train --set data.classes=[3]": "at least two classes",
    "train --resume x -c fast": "--resume",
    "train -c nothing.toml": "neither a file nor one of",
    f"{TRAIN} --name a/b": "run.name = 'a/b'",
    f"{TRAIN} --name .a": "run.name = '.a'",
    "evaluate --verify": "needs the name of a run",
    "demo --host 0.0.0.0": "needs --token",
    "demo --token short": "at least 12",
    "demo --host nowhere.invalid --token 123456789012": "--host nowhere.invalid",
}
WRONG_CONFIGS: list[tuple[bytes, str]] = [
    (b"[train\n", "not valid TOML"),
    (b"\xff\xfe\0", "not valid TOML"),
    (b"[tarin]\na = 1", "tarin"),
    (b"[optimizer]\nlearningrate = 1", "did you mean optimizer.learning_rate?"),
    (b"train = 3", "train"),
    (b'[train]\nepochs = "3"', "train.epochs"),
    (b"#" * 2_000_000, "more than"),
    (b"[train]\nepochs = " + b"9" * 5000, "c.toml"),
]
WRONG_CHECKPOINTS: list[tuple[bytes, str]] = [
    (b"hello", "not a file that torch.save wrote"),
    (b"", "not a file that torch.save wrote"),
    (GOOD[: len(GOOD) // 2], "damaged"),
    (zipped(bytes(1_000_000), zipfile.ZIP_DEFLATED), "compressed"),
    (zipped(pickle.dumps(Harmful(), protocol=2)), "code is never run"),
    (saved([1, 2]), "a plain state_dict"),
    (saved({"model": WEIGHTS}), "plain state_dict"),
    (saved({"fc1.weight": WEIGHTS["l1.weight"]}), "l1, l2"),
    (saved(NO_BIAS), "l2.bias"),
    (saved({**WEIGHTS, "l2.weight": torch.zeros(10, 9)}), "has shape"),
    (saved({**WEIGHTS, "l1.bias": torch.full((8,), torch.nan)}), "NaN"),
    (saved({**WEIGHTS, "l1.bias": torch.zeros(8, dtype=torch.long)}), "floats"),
    (saved(HUGE), "the file holds fewer"),
]
WRONG_IMAGES: list[dict[str, bytes]] = [
    {},
    {"x.png": b""},
    {"x.png": b"hello"},
    {"x.png": png(Image.effect_noise((64, 64), 50))[:200]},
]
OLD_RUN = {"runs/old/notes": b""}
EMPTY_CONFIG = {"a/config.toml": b""}
UNFINISHED = {**EMPTY_CONFIG, "a/run.json": b'{"format_version": 1}'}

CASES = [
    *(Case(words, 2, message) for words, message in WRONG_COMMANDS.items()),
    *(Case("train -c {}/c.toml", 2, message, {"c.toml": text}) for text, message in WRONG_CONFIGS),
    *(Case(CHECK, 1, message, {"x.pt": content}) for content, message in WRONG_CHECKPOINTS),
    *(
        Case("predict {}/x.png --checkpoint {}/y.pt", 1, "x.png", {**files, "y.pt": GOOD})
        for files in WRONG_IMAGES
    ),
    Case("predict x.png --top-k 0", 2, "top-k"),
    # The device and the data
    Case(f"{TRAIN} --device cuda:7", 2, "device 'cuda:7' is not there", TINY_MNIST),
    Case(TRAIN, 1, "127.0.0.1:9"),
    Case(TRAIN, 1, "train-images-idx3-ubyte.gz", TINY_MNIST),
    Case(TRAIN, 1, "train-images-idx3-ubyte.gz", CUT_MNIST),
    # Runs
    Case(f"{TRAIN} --name old --dry-run", 1, "127.0.0.1:9", OLD_RUN),
    Case(f"{TRAIN} --name old", 2, "is never overwritten", OLD_RUN),
    Case("train --output {}/file/runs", 1, "is not a folder", {"file": b""}),
    Case("train --resume nothing --output {}", 1, "there is no run nothing"),
    Case("train --resume latest --output {}", 1, "there is no interrupted run"),
    Case("train --resume {}/runs/old", 1, "no run", OLD_RUN),
    Case(RESUME, 1, "it has no run.json", EMPTY_CONFIG),
    Case(RESUME, 1, "not valid JSON", {**EMPTY_CONFIG, "a/run.json": b"hello"}),
    Case(RESUME, 1, "format_version 2", {**EMPTY_CONFIG, "a/run.json": b'{"format_version": 2}'}),
    Case(f"{RESUME} -b 3", 2, "batch_size cannot change", UNFINISHED),
    Case("evaluate {} --verify", 1, "there is no run"),
    Case("evaluate {}/a --verify", 1, "is not finished", UNFINISHED),
    # Evaluation
    Case("evaluate {}/x.pt", 1, "neither a file nor a run"),
    Case("evaluate {}", 1, "has no model.pt"),
    Case(f"{CHECK} --input-std 0", 2, "--input-std", {"x.pt": GOOD}),
    Case(f"{CHECK} --input-mean nan", 2, "--input-mean", {"x.pt": GOOD}),
    Case(f"{CHECK} --input-std inf", 2, "--input-std", {"x.pt": GOOD}),
    Case(f"{CHECK} --split dev --dataset synthetic", 2, "split", {"x.pt": GOOD}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arguments}: {case.message}")
def test_wrong_input_gets_one_clear_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    # Another test may have unpacked MNIST in the cache.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in case.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    if "synthetic" in case.arguments:
        write_synthetic(tmp_path / "synthetic", generate(20, seed=1), generate(10, seed=2))
    exit_code = main(case.arguments.replace("{}", str(tmp_path)).split())
    err = capsys.readouterr().err
    assert exit_code == case.exit_code, err
    assert case.message.lower() in err.lower()
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1, err
    # Nothing is lost, and no run is left half made.
    assert {name: (tmp_path / name).read_bytes() for name in case.files} == case.files
    assert not [p for p in tmp_path.rglob("*") if p.name in {"model.pt", "harm-done"}]
