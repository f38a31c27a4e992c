"""What a user can get wrong: input, exit code, and one line on stderr, never a traceback."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic import FILE_NAME, generate, write_synthetic
from mnist_ce.network.model import MLP
from mnist_ce.training.callbacks import TrainResult


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


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def pickled_module(**options: Any) -> bytes:
    return saved(torch.nn.Sequential(torch.nn.Linear(784, 10)), **options)


def zipped(
    data_pickle: bytes, compression: int = zipfile.ZIP_STORED, inner: str = "data.pkl"
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"archive/{inner}", data_pickle)
        if inner == "data.pkl":
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
GOOD_SAFETENSORS = safetensors.torch.save(WEIGHTS)
LAYER = {"weight": torch.zeros(784, 784), "bias": torch.zeros(784)}
SIDE_BY_SIDE = {f"{name}.{part}": t.clone() for name in "ab" for part, t in LAYER.items()}
LEGACY_MODULE = pickled_module(_use_new_zipfile_serialization=False)
LONG_NAME = b"name." * 200_000  # torch's own error message would take hours
HUGE = {  # chained layers, in a small file
    "l1.weight": ZERO.expand(2**30, 784),
    "l1.bias": ZERO.expand(2**30),
    "l2.weight": ZERO.expand(10, 2**30),
    "l2.bias": torch.zeros(10),
}

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
    "train --epoch 3": "No such option",
    "train --epochs many": "--epochs = many: must be a whole number",
    "train --epochs 0": "train.epochs = 0",
    "train --epochs 1000000000000": "train.epochs",
    "train --lr nan": "optimizer.learning_rate = nan",
    "train --momentum 1": "optimizer.momentum = 1",
    "train --momentum 0 --set optimizer.nesterov=true": "momentum above 0",
    "train --seed -1": "train.seed = -1",
    "train --seed 4294967296": "must be below 4294967296",  # torch's generator takes 32 bits
    "tune --epochs 1": "did you mean --set train.epochs=VALUE?",
    "train --set epochs=1": "as in train.epochs=1",
    "train --set optimizer.lr=0.1": "did you mean optimizer.learning_rate?",
    "train --set train.lr=0.1": "did you mean optimizer.learning_rate?",
    "train --set optimizer.epoch=1": "did you mean train.epochs?",
    "train --set optimizer.size=1": "unknown key optimizer.size",
    "predict x.png --quiet": "no such option: --quiet (see mnist-ce predict --help)",
    "train --set model.hidden=a,b": "model.hidden = 'a': must be a whole number",
    "train --dataset train.csv": "did you mean csv:train.csv?",
    f"train --dataset {Path(__file__).parent}": f"did you mean folder:{Path(__file__).parent}?",
    "predict x.png --min-confidence 90%": "must be a number; did you mean 0.9?",
    "train --dataset cifar": "data.dataset = 'cifar'",
    "train --device tpu": "must be auto, cpu, mps, cuda or cuda:N",
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
    "train --resume x -c fast": "--resume takes the config.toml of the run",
    "train --resume x --show-config": "--resume takes the config.toml of the run",
    "train --show-config --set train.epoch=3": "did you mean train.epochs?",
    "train -c nothing.toml": "neither a file nor one of",
    f"{TRAIN} --name a/b": "run.name = 'a/b'",
    f"{TRAIN} --dry-run --name a/b": "run.name = 'a/b'",
    f"{TRAIN} --name latest": "'latest' stands for the newest run",
    f"{TRAIN} --name world-mlp": "'world-mlp' stands for shipped weights",
    f"{TRAIN} --set run.name=pretrained": "'pretrained' stands for shipped weights",
    f"{TRAIN} --name -x": "begins as an option does",
    f"{TRAIN} --name caf\udce9": "must be UTF-8 without control characters",
    f"{TRAIN} --name {'n' * 231}": "has more than 230 bytes",
    f"{TRAIN} --name com1.txt": "is not the name of a folder on every system",
    f"{TRAIN} --name a:b": "is not the name of a folder on every system",
    f"{TRAIN} --name end.": "is not the name of a folder on every system",
    "train --output ~nobody-of-this-name/runs": "there is no user 'nobody-of-this-name'",
    "train --output s3://bucket/runs": "s3://bucket/runs is an address: download it first",
    "train --dataset csv:https://a.org/x.csv": "https://a.org/x.csv is an address: download it",
    "evaluate https://a.org/x.pt": "https://a.org/x.pt is an address: download it first",
    "tune --seeds 0,0": "two of the runs would be called default-seed0",
    "tune --seeds 0-99999": "--seeds",
    "tune --grid train.seed=1,2": "use --seeds",
    "tune --grid optimizer.momentun=0.5": "did you mean optimizer.momentum?",
    "tune -c fast,fats": "did you mean fast?",
    "tune --name a/b": "run.name = 'a/b'",
    "tune --search nothing.toml": "there is no such file",
    "tune --search nothing.toml -c fast,99": "one --config",
    "evaluate mnist --plot x": "--plot x: the plot is a PNG; end its name in .png",
    "demo --host 0.0.0.0": "it needs --token-file",
}
WRONG_SPACES: list[tuple[bytes, str]] = [
    (b"[optimizer]\nlearningrate = [1]", "did you mean optimizer.learning_rate?"),
    (b"[optimizer]\nmomentum = { low = 0.5, high = 1.0 }", "optimizer.momentum = 1.0 (from"),
    (b"[optimizer]\nmomentum = { low = 0.5 }", "or a range { low"),
    (b"[optimizer]\nmomentum = { low = 0.9, high = 0.5 }", "optimizer.momentum: "),
    (b"[optimizer]\nmomentum = { low = 0, high = 0.5, log = true }", "optimizer.momentum: "),
    (b"[optimizer]\nmomentum = { low = 0.1, high = 0.5, lgo = true }", "optimizer.momentum: "),
    (b"[optimizer]\nnesterov = { low = 0, high = 1 }", "optimizer.nesterov"),
    (b"[optimizer]\nnesterov = true", "optimizer.nesterov must be a list of choices"),
    (b"[train]\nepochs = { low = 1.5, high = 3 }", "train.epochs = 1.5"),
    (b"[train]\nseed = [0, 1]", "cannot be searched"),
    (
        b"[optimizer]\nmomentum = [0.5, 0.9]",
        "{ low = 0.5, high = 0.9 } or { choices = [0.5, 0.9] }",
    ),
    (b"[optimizer]\nmomentum = { choices = [] }", "must be a list of choices"),
    (b"[optimizer]\nmomentum = { choices = [0.5, 0.9] }", "data.validation_size=5000"),
]
WRONG_CONFIGS: list[tuple[bytes, str]] = [
    (b"[train\n", "not valid TOML"),
    (b"\xff\xfe\0", "not valid TOML"),
    (b'[data]\ndir = "C:\\Users"', "write a text with \\ in '…', or / in its place"),
    (b'[data]\ndir = "C:\\table"', "write a path with / or in '…'"),
    (b"[tarin]\na = 1", "tarin"),
    (b"[optimizer]\nlearningrate = 1", "did you mean optimizer.learning_rate?"),
    (b'[train]\nepochs = "3"', "train.epochs"),
    (b"#" * 2_000_000, "more than"),
    (b"[train]\nepochs = " + b"9" * 5000, "c.toml"),
]
WRONG_CHECKPOINTS: list[tuple[bytes, str]] = [
    (b"hello", "not a file that torch.save wrote"),
    (b"", "is empty"),
    (bytes(1000), "full of zeros"),
    (b"\x05\xe1 of no known kind", "damaged, or of a format not known"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "git lfs pull"),
    (b" <!DOCTYPE html><html></html>", "HTML"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 file, as Keras writes: docs/own-network.md"),
    (b"\x93NUMPY\x01\0", "NumPy"),
    (b"\x08\x08\x12\x07pytorch", "TensorFlow or ONNX"),
    (b"\x1f\x8b\x08\0", "compressed"),
    (zipped(b"", inner="code/constants.pkl"), "a zip archive that torch.save did not write"),
    (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    (GOOD_SAFETENSORS[:1000], "damaged safetensors"),
    (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:2000], "is damaged"),
    (pickled_module(), "an object of torch.nn.modules.container.Sequential"),
    (LEGACY_MODULE, "an object of torch.nn"),
    (zipped(b"\x80\x02ca\n" + LONG_NAME + b"\n."), "an object of a.name.name"),
    (LEGACY_MODULE.replace(b"Sequential", LONG_NAME), "container.name.name"),
    (saved({"net": WEIGHTS, "args": Namespace(lr=1)}), "save model.state_dict() alone"),
    (
        saved({"model": WEIGHTS, "ema": dict(MLP([8], 10).state_dict())}),
        "several networks (model.l1.weight, ema.l1.weight)",
    ),
    (saved({"a": {"l1.weight": torch.zeros(0)}}), "holds no weights"),
    (saved({**WEIGHTS, "conv.weight": torch.zeros(2, 1, 3, 3)}), "conv.weight [2, 1, 3, 3]"),
    (saved({name: tensor.t() for name, tensor in WEIGHTS.items()}), "has shape [784, 8]"),
    (safetensors.torch.save(SIDE_BY_SIDE), "does not tell the order of a.weight, b.weight"),
    (GOOD[: len(GOOD) // 2], "damaged"),
    (zipped(bytes(1_000_000), zipfile.ZIP_DEFLATED), "compressed"),
    (zipped(pickle.dumps(Harmful(), protocol=2)), "no code is run"),
    (saved([1, 2]), "a plain state_dict"),
    (saved({"fc1.weight": WEIGHTS["l1.weight"]}), "1 weights, 0 biases (fc1.weight)"),
    (saved(NO_BIAS), "2 weights, 1 biases"),
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
SPACE = {"s.toml": b"[optimizer]\nmomentum = [0.5, 0.7, 0.9]", "notes": b"no database" * 99}
SEARCH = "tune --search {}/s.toml --set data.validation_size=5 --output {}/runs"
UNFINISHED = {**EMPTY_CONFIG, "a/run.json": b'{"format_version": 1}'}

CASES = [
    *(Case(words, 2, message) for words, message in WRONG_COMMANDS.items()),
    *(Case("train -c {}/c.toml", 2, message, {"c.toml": text}) for text, message in WRONG_CONFIGS),
    *(Case("tune --search {}/s.toml", 2, text, {"s.toml": toml}) for toml, text in WRONG_SPACES),
    *(Case(CHECK, 1, message, {"x.pt": content}) for content, message in WRONG_CHECKPOINTS),
    *(
        Case("predict {}/x.png --checkpoint {}/y.pt", 1, "x.png", {**files, "y.pt": GOOD})
        for files in WRONG_IMAGES
    ),
    Case("predict x.png --top-k 0", 2, "top-k"),
    Case("predict https://a.org/7.png", 1, "https://a.org/7.png is an address: download it first"),
    # The device and the data
    Case(f"{TRAIN} --device cuda:7", 2, "device 'cuda:7' is not there", TINY_MNIST),
    Case(TRAIN, 1, "127.0.0.1:9"),
    Case(TRAIN, 1, "train-images-idx3-ubyte.gz", TINY_MNIST),
    Case(TRAIN, 1, "train-images-idx3-ubyte.gz", CUT_MNIST),
    Case("train --dataset csv:{}/x.csv", 1, "x.csv has 2 columns", {"x.csv": b"1,2\n"}),
    Case("train --dataset npz:{}/x.npz", 1, "cannot be read as .npz", {"x.npz": b"PK"}),
    Case("train --dataset folder:{}/x", 1, "has no labelled image", {"x/one.txt": b"1"}),
    Case("train --dataset folder:", 2, "data.dataset = 'folder:'"),
    # The server
    Case("demo --token-file {}/t", 2, "at least 12", {"t": b"short"}),
    Case("demo --token-file {}/t", 1, "t: No such file"),
    Case(
        "demo --token-file {}/t --host nowhere.invalid", 2, "--host nowhere", {"t": b"123456789012"}
    ),
    # Runs
    Case(f"{TRAIN} --name old --dry-run", 2, "is never overwritten", OLD_RUN),
    Case(f"{TRAIN} --name old", 2, "is never overwritten", OLD_RUN),
    Case("train --output {}/file/runs", 1, "is not a folder", {"file": b""}),
    Case("train --init gone --output {}", 1, "checkpoint gone is neither a file nor"),
    Case(
        "train --step fast --set optimizer.name=adam --dataset synthetic --data-dir {} --output {}",
        2,
        "is for the MLP and SGD",
    ),
    Case("train --resume nothing --output {}", 1, "there is no run nothing"),
    Case("train --resume latest --output {}", 1, "there is no resumable run"),
    Case("train --resume {}/runs/old", 1, "no run", OLD_RUN),
    Case(RESUME, 1, "it has no run.json", EMPTY_CONFIG),
    Case(RESUME, 1, "not valid JSON", {**EMPTY_CONFIG, "a/run.json": b"hello"}),
    Case(RESUME, 1, "format_version 2", {**EMPTY_CONFIG, "a/run.json": b'{"format_version": 2}'}),
    Case(f"{RESUME} -b 3", 2, "batch_size cannot change", UNFINISHED),
    Case("evaluate {} --verify", 1, "there is no run"),
    Case("evaluate {}/a --verify", 1, "is not finished", UNFINISHED),
    Case("tune --storage nosql://x --output {}/runs", 2, "nosql://x: give a database's URL"),
    Case(f"{SEARCH} --storage {{}}/notes", 2, "notes: give a database's URL", SPACE),
    Case(f"{SEARCH} --storage sqlite:///{{}}/notes", 1, "file is not a database", SPACE),
    # Evaluation
    Case("evaluate {}/x.pt", 1, "neither a file nor a run"),
    Case("evaluate y --output {}", 1, "did you mean y2?", {"y2/notes": b""}),
    Case("evaluate {}/yy.pt", 1, "/xy.pt?", {"xy.pt": GOOD}),
    Case("evaluate {}", 1, "name one of its files", {"x.safetensors": GOOD_SAFETENSORS}),
    Case("train --resume olt --output {}/runs", 1, "did you mean old?", OLD_RUN),
    Case("evaluate {}", 1, "has no model.pt"),
    Case(f"{CHECK} --input-std 0", 2, "--input-std", {"x.pt": GOOD}),
    Case(f"{CHECK} --input-mean nan", 2, "--input-mean", {"x.pt": GOOD}),
    Case(f"{CHECK} --input-std inf", 2, "--input-std", {"x.pt": GOOD}),
    Case(f"{CHECK} --dataset mnits", 2, "did you mean mnist?", {"x.pt": GOOD}),
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
        path = tmp_path / "synthetic" / FILE_NAME
        write_synthetic(path, generate(20, seed=1), generate(10, seed=2))
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


DRY = "--dry-run --set model.hidden=[8]"
SMALL = "--set model.hidden=[8] --set train.epochs=1 --set run.plots=false"
OF_RUNS = ("train", "tune", "evaluate", "compare", "runs", "calibrate")
ADVICE = [  # a wrong command, what its error advises, and the command that follows the advice
    ("trian --help", "did you mean train?", "train --help"),
    (
        "train fast --show-config",
        "did you mean --config fast?",
        "train --config fast --show-config",
    ),
    ("train epochs=1 --show-config", "did you mean --epochs 1?", "train --epochs 1 --show-config"),
    ("train --learning-rate 0.1", "did you mean --lr?", "train --lr 0.1 --show-config"),
    (
        "train --weight-decay 0.1 --show-config",
        "did you mean --set optimizer.weight_decay=VALUE?",
        "train --set optimizer.weight_decay=0.1 --show-config",
    ),
    ("train -c fsat", "did you mean fast?", "train -c fast --show-config"),
    ("train --dataset minst", "did you mean mnist?", "train --dataset mnist --show-config"),
    (
        "train --set average.decay=99",
        "did you mean 0.99?",
        "train --set average.decay=0.99 --show-config",
    ),
    (
        "train --set lr=1",
        "as in optimizer.learning_rate=1",
        f"train --set optimizer.learning_rate=1 {DRY}",
    ),
    ("explain --logits 1,2", "--target is missing", "explain --logits 1,2 --target 0"),
    ("explain --logits 1,2 --taget 0", "did you mean --target?", "explain --logits 1,2 --target 0"),
    (
        "explain --binary --logits 1,2 --target 1",
        "write several rows as 1.2; -0.3",
        "explain --binary --logits 1;2 --target 1,0",
    ),
    ("runs --delte x", "did you mean --delete?", "runs --delete extra --yes"),
    ("runs --delete world --yes", "'mnist-ce runs' lists", "runs"),
    ("report --output none", "train one with 'mnist-ce train'", f"train {SMALL} --output none"),
    ("evaluate fats", "did you mean fast?", "evaluate fast"),
    ("evaluate best", "mnist-ce train --config best trains it", f"train --config best {DRY}"),
    (
        "evaluate net.pt --activation gleu",
        "must be one of relu, ",
        "evaluate net.pt --activation gelu",
    ),
    ("evaluate a --activation tanh", "has ReLU", "evaluate a"),
    ("evaluate --verify", "needs the name of a run", "evaluate a --verify"),
    ("compare a", "name 2 to 26 networks", "compare a b"),
    ("compare a b --plot x.pdf", "end its name in .png", "compare a b --plot x.png"),
    ("train --name a", "choose another --name", f"train --name new {SMALL}"),
    ("train --name a", "continue it with --resume a", "train --resume a --epochs 2"),
    (
        "train --resume world",
        "see --init",
        f"train --init world {DRY} --set model.hidden=[520,320,240,120]",
    ),
    ("train --device cuda:7", "use --device cpu or auto", f"train --device cpu {DRY}"),
    (f"train --model net.py {DRY}", "as in net.py:CNN", f"train --model net.py:CNN {DRY}"),
    ("tune --set run.name=x", "use --name", f"tune --name x {SMALL}"),
    ("tune --seeds 4-0", "write 0-4", f"tune --seeds 0-1 {SMALL} --output of-seeds"),
    (
        "tune --grid momentum=0",
        "as optimizer.momentum=0.5,0.9",
        f"tune --grid optimizer.momentum=0,0.5 {SMALL} --output of-grid",
    ),
    (
        "tune --search s.toml",
        "--set data.validation_size=",
        f"tune --search s.toml --trials 1 {SMALL} --set data.validation_size=50 --output of-search",
    ),
    (
        "calibrate fast",
        "--set data.validation_size=5000 and name that run with --with",
        "calibrate a",
    ),
    ("predict https://a.org/7.png", "download it first", "predict x.png --single"),
    (
        "predict x.png --min-confidence 90",
        "did you mean 0.9?",
        "predict x.png --min-confidence 0.9",
    ),
    ("predict x.png --json --csv", "choose one of --json, ", "predict x.png --csv"),
]


@pytest.fixture(scope="module")
def folder(two_runs: Path, train_small_in: Callable[..., TrainResult]) -> Path:
    """A folder of runs, in which also lie an image, a network's weights, a module and a space."""
    for name in ("fast", "extra"):
        train_small_in(two_runs, name, train__epochs=1)
    (two_runs / "net.pt").write_bytes(GOOD)
    (two_runs / "net.py").write_text(
        "from torch import nn\n\n\nclass CNN(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    (two_runs / "s.toml").write_text("[optimizer]\nmomentum = [0.5, 0.7, 0.9]\n")
    (two_runs / "x.png").write_bytes(png(Image.fromarray(generate(1, seed=4).images.numpy()[0])))
    return two_runs


@pytest.mark.usefixtures("small_data", "one_thread")
@pytest.mark.parametrize(("wrong", "advice", "right"), ADVICE)
def test_advice_can_be_followed(
    wrong: str,
    advice: str,
    right: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    commands = [
        line.split() + ["--output", "."] * (line.split()[0] in OF_RUNS and "--output" not in line)
        for line in (wrong, right)
    ]
    assert main(commands[0]) in (1, 2)
    assert advice in capsys.readouterr().err
    assert main(commands[1]) == 0, capsys.readouterr().err
