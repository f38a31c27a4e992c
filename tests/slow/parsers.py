"""The package's parsers of foreign files, with valid files to corrupt."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from mnist_ce.cli.train import config_text
from mnist_ce.config import parse_assignments, resolve_config
from mnist_ce.data.tables import read_arrays
from mnist_ce.network.model import MLP
from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.pixels import to_float_image
from mnist_ce.runs.checkpoint import model_from, read_weights
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import FORMAT_VERSION
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics, MetricSums, TrainState, load_snapshot
from mnist_ce.system.errors import CheckpointError

EDITS = ("replace", "insert", "delete", "repeat", "truncate")
INTERESTING = (
    *(b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff" * 8, b"-1", b"1e999"),
    *(b"nan", b"9" * 30, b"9" * 5000, b"[" * 2000, b"{", b'"', b"\n", b"null", b"true", b"=", b"."),
)


@dataclass(frozen=True)
class Parser:
    """A parser of files of one name, and the contents of valid ones."""

    name: str
    seeds: Sequence[bytes]
    parse: Callable[[Path], object]


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MLP([4], 10).state_dict()


def _saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _resume() -> dict[str, object]:
    row: EpochMetrics = {"epoch": 1, "train_loss": 2.3, "train_accuracy": 0.1, "seconds": 0.2}
    row |= {"validation_loss": 2.3, "validation_accuracy": 0.1}
    state = TrainState(epoch=2, batch=3, totals=MetricSums(1.5, 2, 30), rows=[row], best_epoch=1)
    step = {"num_steps": 13, "weights": _weights(), "momentum": _weights(), "average": {}}
    return {"format_version": FORMAT_VERSION, "step": step, "train_state": state.model_dump()}


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def _with_pickle(content: bytes, pickled: bytes) -> bytes:
    """Replace the pickle in a torch archive, with valid checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, pickled if name.endswith("data.pkl") else archive.read(name))
    return buffer.getvalue()


def _parse_checkpoint(path: Path) -> object:
    return model_from(read_weights(path)[0])


def _parse_foreign(path: Path) -> object:
    with contextlib.suppress(CheckpointError):  # the valid ones are refused, too
        return _parse_checkpoint(path)
    return None


def _parse_resume(path: Path) -> object:
    return load_snapshot(RunDir(path.parent), _weights())


def _parse_run_json(path: Path) -> object:
    (path.parent / "model.pt").write_bytes(_saved(_weights()))
    return load_model(path.parent / "model.pt")


def _in_archive(content: object, parse: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what parses a torch archive whose pickle is replaced by a file `NAME.pickle`."""

    def parse_with_pickle(path: Path) -> object:
        archive = path.with_suffix(".pt")
        archive.write_bytes(_with_pickle(_saved(content), path.read_bytes()))
        return parse(archive)

    return parse_with_pickle


def _parse_assignment(path: Path) -> object:
    flags = parse_assignments([path.read_bytes().decode("utf-8", errors="replace")])
    return resolve_config(None, flags=flags, environment={})


def _images() -> list[bytes]:
    noise = np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    forms = [(image, form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    buffers = []
    for shown, form in (*forms, (image.convert("I;16"), "PNG")):
        buffers.append(io.BytesIO())
        shown.save(buffers[-1], form)
    return [buffer.getvalue() for buffer in buffers]


def _tables() -> list[bytes]:
    buffers = [io.BytesIO(), io.BytesIO()]
    for buffer, save in zip(buffers, (np.savez, np.savez_compressed), strict=True):
        save(buffer, x_train=np.arange(784 * 3).reshape(3, 784) % 256, y_train=np.arange(3))
    return [buffer.getvalue() for buffer in buffers]


def _record() -> bytes:
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "name": "a", "status": "finished"}
    record |= {"dataset": "mnist", "objective": "multiclass", "prediction": {"temperature": 1.5}}
    record |= {"class_names": list("0123456789"), "process": {"id": 3, "host": "x"}}
    record |= {"config": resolve_config(environment={}).to_dict()}
    return json.dumps(record).encode()


def _training() -> dict[str, object]:
    """A checkpoint as training scripts save it, with values of NumPy beside the state_dict."""
    weights = {f"model.{key}": tensor for key, tensor in _weights().items()}
    beside = {"epoch": np.int64(3), "loss": np.float32(0.5), "history": np.zeros(3)}
    return {**beside, "state_dict": weights}


_LEGACY = [_saved(c, _use_new_zipfile_serialization=False) for c in (_weights(), _training())]
_FOREIGN = [
    *(b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x08\x08\x12\x07pytorch"),
    *(b"\x93NUMPY\x01\0", b"\x89HDF\r\n\x1a\n", pickle.dumps(_training()), bytes(300)),
]
_CHECKPOINT, _RESUME = _saved(_weights()), _saved(_resume())
_CONFIG = config_text(resolve_config(environment={})).encode()
_COLUMNS = b"epoch,train_loss,train_accuracy,test_loss,test_accuracy,learning_rate,seconds\n"
_METRICS = _COLUMNS + b"1,2.3,0.1,2.3,0.1,0.01,1.5\n"
_STEPS = b"step,epoch,loss,accuracy,learning_rate\n10,1,2.3,0.1,0.01\n20,1,2.2,0.2,0.01\n"
PARSERS = [
    Parser("x.pt", [_CHECKPOINT], _parse_checkpoint),
    Parser("x.pickle", [_pickle_of(_CHECKPOINT)], _in_archive(_weights(), _parse_checkpoint)),
    Parser(
        "y.pickle", [_pickle_of(_saved(_training()))], _in_archive(_training(), _parse_checkpoint)
    ),
    Parser("x.pth", _LEGACY, _parse_checkpoint),
    Parser("x.safetensors", [safetensors.torch.save(_weights())], _parse_checkpoint),
    Parser("x.bin", _FOREIGN, _parse_foreign),
    Parser("resume.pt", [_RESUME], _parse_resume),
    Parser("resume.pickle", [_pickle_of(_RESUME)], _in_archive(_resume(), _parse_resume)),
    Parser("x.toml", [_CONFIG, b"[train]\nepochs = 3\n"], partial(resolve_config, environment={})),
    Parser("--set", [b"train.epochs=3", b"model.hidden=[3, 4]"], _parse_assignment),
    Parser("run.json", [_record()], _parse_run_json),
    Parser("metrics.csv", [_METRICS], lambda path: RunDir(path.parent).read_metrics()),
    Parser("steps.csv", [_STEPS], lambda path: RunDir(path.parent).read_steps()),
    Parser("x.npz", _tables(), functools.partial(read_arrays, "npz")),
    Parser(
        "x.csv",
        [b"\n".join([b"7," + b",".join([b"%d" % i] * 784) for i in (0, 25, 255)])],
        functools.partial(read_arrays, "csv"),
    ),
    Parser("x.png", _images(), lambda path: to_float_image(open_image(path))),
]


def edited(data: bytes, kind: str, place: float, length: int, content: bytes) -> bytes:
    """Change a file at a place given as a fraction of its length."""
    at = int(place * len(data))
    before, after, end = data[:at], data[at:], at + length
    return {
        "replace": before + content + after[len(content) :],
        "insert": before + content + after,
        "delete": before + data[end:],
        "repeat": data[:end] + after,
        "truncate": before,
    }[kind]
