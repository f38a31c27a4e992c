"""Labelled images in one file: CSV and `.npz`."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnist_ce.cli import main
from mnist_ce.config import DataConfig, ObjectiveConfig
from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.dataset import DataSplits, load_dataset, load_splits
from mnist_ce.data.splits import DIGITS, Arrays, Dataset, Split, split_test, to_splits
from mnist_ce.data.synthetic import generate
from mnist_ce.data.tables import read_arrays
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.runs.load_model import load_model
from mnist_ce.system.errors import DataError

N = 30
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 28, 28), "u1")
LABELS = np.arange(N, dtype="u1") % 10
ROWS = [
    f"{label},{','.join(map(str, image.ravel()))}"
    for image, label in zip(IMAGES, LABELS, strict=True)
]
PIXELS = ",".join(f"pixel{i}" for i in range(784))


def read(kind: str, path: Path) -> tuple[Split, Split | None, tuple[str, ...]]:
    splits, class_names = to_splits(read_arrays(kind, path), str(path))
    return splits["train"], splits.get("test"), class_names


def split_of(images: Any, labels: Any) -> Split:
    return to_splits({"train": Arrays(images, labels)}, "")[0]["train"]


def check(split: Split | None, images: Any = IMAGES, labels: Any = LABELS) -> None:
    assert split is not None
    assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(split.images.numpy(), images)
    assert np.array_equal(split.labels.numpy(), labels)


def test_the_test_images_lie_beside_or_are_split_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Train.csv").write_text("\n".join([f"label,{PIXELS}", *ROWS]))
    Path("Test.csv").write_text("\n".join([PIXELS, *(row[2:] for row in ROWS)]))  # Kaggle's
    split = load_dataset("csv:Train.csv", tmp_path)
    assert split.name == f"csv:{tmp_path / 'Train.csv'}"
    assert (len(split.train), len(split.test)) == (20, 10)
    assert split.split_note == "10 of 30 images, a fifth of each class, are for testing"
    Path("Test.csv").write_text("\n".join(ROWS[:7]))
    pair = load_dataset("csv:Train.csv", tmp_path)
    check(pair.train, IMAGES[7:], LABELS[7:])  # without the test images
    check(pair.test, IMAGES[:7], LABELS[:7])
    assert (pair.split_note, pair.digest != split.digest) == (None, True)


def test_the_split_follows_from_the_pixels_alone() -> None:
    images = torch.arange(100, dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
    once = Split(images, torch.arange(100) % 2)
    order = torch.tensor(random.Random(1).sample(range(100), 100))
    chosen = set()
    for split in (once, once[order], Split(images.repeat(5, 1, 1), once.labels.repeat(5))):
        train, test = split_test(split)
        assert test.labels.bincount().tolist() == [len(split) // 10] * 2
        values = frozenset(test.images[:, 0, 0].tolist())
        assert values.isdisjoint(train.images[:, 0, 0].tolist())
        chosen.add(values)
    assert len(chosen) == 1


@pytest.mark.parametrize("path", ["npz:x.npz", "mnist+npz:x.npz"])
def test_test_images_leave_the_training_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_warnings: Callable[[], list[str]],
    path: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mnist = Dataset(
        "mnist",
        split_of(IMAGES[3:8], LABELS[3:8]),
        split_of(IMAGES, LABELS),
        DIGITS,
    )
    monkeypatch.setattr(dataset_module, "DatasetFiles", lambda *_, **__: Mock(load=lambda: mnist))
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:5], "y_test": LABELS[:5]}
    np.savez("x.npz", **arrays)  # type: ignore[arg-type]
    dataset = load_dataset(path, tmp_path)
    check(dataset.train, IMAGES[5:], LABELS[5:])
    check(dataset.test, IMAGES[:5], LABELS[:5])
    place = path.replace("x.", f"{tmp_path}/x.")
    expected = [f"5 of {place}'s 30 training images are among the test images, and"]
    if dataset.mnist is not None:
        check(dataset.mnist, IMAGES[5:8], LABELS[5:8])
        expected += ["2 of MNIST's 5 training images are among"]
    for warning, start in zip(log_warnings(), expected, strict=True):
        assert warning.startswith(start)


@settings(max_examples=15, deadline=None)
@given(
    table=arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(785))),
    bad=st.tuples(
        st.integers(0, 3),
        st.integers(1, 784),
        st.sampled_from(["", "256", "1000", "-1", "1.5.", "a", "nan"]),
    )
    | st.none(),
)
def test_csv_is_read_as_numpy_does_and_the_first_bad_cell_is_named(
    tmp_path_factory: pytest.TempPathFactory, table: Any, bad: tuple[int, int, str] | None
) -> None:
    rows = [list(map(str, row)) for row in table.tolist()]
    if bad is not None:
        rows[bad[0] % len(rows)][bad[1]] = bad[2]
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text("\n".join([f"label,{PIXELS}", *map(",".join, rows)]), encoding="utf-8")
    if bad is None:
        pixels = table[:, 1:].reshape(-1, 28, 28)
        split, *_ = read("csv", path)
        check(split, pixels * (255 if pixels.max() <= 1 else 1), split.labels)
    else:
        place = f"line {bad[0] % len(rows) + 2}.*(pixel {bad[1]}|column {bad[1] + 1}|)"
        with pytest.raises(DataError, match=f"{place}(:|$)"):
            read("csv", path)


@given(place=st.integers(0), value=st.integers(0, 255))
def test_no_altered_byte_of_an_npz_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    content = bytearray(GOOD)
    content[place % len(GOOD)] = value
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        check(read("npz", path)[0])


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


HOLES = np.where(IMAGES == 0, np.nan, IMAGES)
GOOD = npz(x_train=IMAGES, y_train=LABELS)
Y_TRAIN = zipfile.ZipFile(io.BytesIO(GOOD)).read("y_train.npy")
BITS = b"\xff" * 10
UNREADABLE: list[tuple[str | bytes, str]] = [
    (ROWS[0] + "\n" + ROWS[1][:-9], "line 2: .* requires 785 columns but 78"),
    (ROWS[0] + "\n5,256" + ",0" * 783, "line 2, pixel 1: not a number from 0 to"),
    (ROWS[0] + "\n5,\x1b[31m" + ",0" * 783, r"line 2: .*'\\x1b\[31m' to float32, column 2"),
    ("", r"1 columns \(\); 785 are expected"),
    (f"label,{PIXELS}\n", "no data"),
    ("\0" * 100_000, r"1 columns .*; 785 are expected"),
    (PIXELS + "\n" + "0," * 783 + "0", "images without labels"),
    (npz(a=IMAGES[0], b=LABELS), r"has no images, such as x_train \(it holds a, b\)"),
    (npz(x_train=IMAGES[:, :27], y_train=LABELS), r"images of shape \[30, 27, 28\]"),
    (npz(x_train=IMAGES, y_train=LABELS[1:]), r"labels of shape \[29\], expected \[30\]"),
    (npz(x_train=HOLES, y_train=LABELS), "a pixel is not from 0 to 255.* from nan to nan"),
    (npz(x_train=IMAGES.astype("i8") - 300, y_train=LABELS), "a pixel is not"),
    *(
        (npz(x_train=IMAGES, y_train=labels), "a label is not a whole number from 0")
        for labels in (-1.0 - LABELS, LABELS / 2, LABELS * 1e300, np.full(N, np.inf))
    ),
    (npz(x_train=IMAGES[:0], y_train=LABELS[:0]), "no image"),
    (npz(x_train=IMAGES.astype(object), y_train=LABELS), "Object arrays cannot be loaded"),
    (npz(x_train=IMAGES.astype(str), y_train=LABELS), "not numbers"),
    (b"PK", "not a zip"),
    (GOOD[: len(GOOD) // 2], "cannot be read as .npz"),
    (GOOD[:5000] + b"??" + GOOD[5002:], "cannot be read"),
    (GOOD[:60] + BITS + GOOD[70:], "cannot be read as .npz: "),  # the packed data
    (re.sub(b"(?s)(PK\1\2.{4}).", b"\\1\x01", GOOD), "is encrypted"),
    (archive(("x_train.npy", b""), ("y_train.npy", Y_TRAIN)), "not numbers"),
    (archive(("mnist.npz", GOOD)), "it holds mnist.npz"),
    # The directory says that 600 MB come out of it.
    (re.sub(b"(?s)(PK\1\2.{20}).{4}", b"\\1\0\0\xc0\x23", GOOD), "unpacks to more than 536,870"),
    (archive(("\x1b[31m", b"")), r"it holds \?\[31m\)"),
    *(
        (archive(("x_train.npy", header(*text) + bytes(9)), ("y_train.npy", Y_TRAIN)), message)
        for text, message in (
            (("'|u1'", "(10**9, 28, 28)"), "cannot be read as .npz"),
            (("'|u1'", "(99999, 28, 28)"), "cannot be read as .npz"),
            (("'|u1'", "(3, 3)"), r"images of shape \[3, 3\]"),
            (("'|u1'", "(-1, 28, 28)"), "cannot be read as .npz"),
            (("'<M8[s]'", "(1,)"), "not numbers"),
            (("'|V9'", "(1,)"), "not numbers"),
            (("'nothing'", "(1,)"), "not a valid dtype"),
            (("'|u1'", "(" * 40 + ")" * 40), r"images of shape \[\]"),
        )
    ),
    (npz(x_train=np.zeros((100_001, 784), "?")), "holds 100,001, more than 100,000"),
]


@pytest.mark.parametrize(("content", "message"), UNREADABLE)
def test_what_cannot_be_read_gets_one_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path, kind = tmp_path / "digits", "csv" if isinstance(content, str) else "npz"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"{kind}:{path}", tmp_path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


SEEDS = {
    "npz": [GOOD, *(archive(("x_train.npy", h), ("y_train.npy", Y_TRAIN)) for h in (b"", Y_TRAIN))],
    "csv": ["\n".join(ROWS).encode(), "\n".join([f"label,{PIXELS}", *ROWS]).encode()],
}


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    seed=st.integers(0, 2),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)),
        min_size=1,
        max_size=3,
    ),
    command=st.sampled_from(["evaluate mnist", "train --dry-run --epochs 1 --threads 1"]),
)
def test_whatever_is_damaged_gets_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    seed: int,
    edits: list[tuple[float, int, bytes]],
    command: str,
) -> None:
    content = SEEDS[kind][seed % len(SEEDS[kind])]
    for place, length, new in edits:
        at = int(place * len(content))
        content = content[:at] + new + content[at + length :]
    path = tmp_path_factory.mktemp("damaged") / f"x.{kind}"
    path.write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = main([*command.split(), "--dataset", f"{kind}:{path}", "--json"])
    errors = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1))
    assert "Traceback" not in stderr.getvalue()


def numbered(num_images: int, dtype: str) -> Any:
    """Images that all differ and hardly take a byte each when packed, [n, 28, 28]."""
    images = np.zeros((num_images, 784), dtype)
    images[:, :4] = np.arange(num_images, dtype="<u4")[:, None].view("u1")
    return images.reshape(-1, 28, 28)


LABELS_OF_MANY = np.arange(100_000, dtype="u1") % 10
COSTLY: dict[str, Callable[[], bytes]] = {
    "images.npz": lambda: npz(
        x_train=numbered(100_000, "u1") + 1,
        y_train=LABELS_OF_MANY,
        x_test=numbered(100_000, "u1"),
        y_test=LABELS_OF_MANY,
    ),
    "float64.npz": lambda: npz(x_train=numbered(60_000, "f8"), y_train=LABELS_OF_MANY[:60_000]),
    "members.npz": lambda: archive(*((f"{n}", b"") for n in range(100_000))),
    "zeros.csv": lambda: b"\n".join([b"0" + b",0" * 784] * 10_000),
    "packed.csv": lambda: gzip.compress(
        b"\n".join([b"%d" % (n % 10) + b",0,7" * 392 for n in range(60_000)])
    ),
    "nonsense.csv": lambda: b"\n".join([b"0" + b",0" * 784, *[b"a," * 7 * 10**6]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_a_file_of_16_mb_is_read_or_refused_in_bounds(tmp_path: Path, name: str) -> None:
    content = COSTLY[name]()
    assert len(content) <= 16e6
    (tmp_path / name).write_bytes(content)
    dataset = f"{name[-3:]}:{tmp_path / name}"
    # A process's maximum begins with that of the one that starts it: a small one in between.
    measure = "import json, subprocess, sys, resource as r; done = subprocess.run(sys.argv[1:])"
    measure += "; print(json.dumps([done.returncode, *r.getrusage(r.RUSAGE_CHILDREN)[:3]]))"
    command = [sys.executable, "-c", measure, sys.executable, "-m", "mnist_ce", "evaluate"]
    command += ["mnist", "--json", "--dataset", dataset]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exit_code, user, system, max_kilobytes = json.loads(done.stdout.splitlines()[-1])
    assert exit_code in (0, 1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == exit_code
    assert user + system < 10
    assert max_kilobytes < 1.5e6


def idx(array: Any, code: int = 8) -> bytes:
    return (
        bytes((0, 0, code, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + bytes(array)
    )


def text(*columns: Any, separator: str = ",", header: str = "") -> bytes:
    table = np.concatenate([np.asarray(c, object).reshape(N, -1) for c in columns], axis=1)
    lines = [separator.join(map(str, row)) for row in table.tolist()]
    return "\n".join([*[header.replace(",", separator)] * bool(header), *lines]).encode()


FLAT, ONE_HOT, NAMED = IMAGES.reshape(N, 784), np.eye(10, dtype="u1")[LABELS], f"label,{PIXELS}"
PLAIN = text(LABELS, FLAT, header=NAMED)
TEST_SET = {"x_test": IMAGES[:5], "y_test": LABELS[:5]}
QMNIST = np.concatenate([LABELS[:, None], np.full((N, 7), 4)], axis=1).astype(">i4")
SETS = {
    f"emnist-{name}-{part}-{what}-ubyte.gz": gzip.compress(content)
    for name, first in (("digits", 0), ("letters", 1))
    for part in ("train", "test")
    for what, content in (("images-idx3", idx(IMAGES)), ("labels-idx1", idx(LABELS + first)))
}
MATRIX = ",".join(f"{y}x{x}" for y in range(1, 29) for x in range(1, 29))
# Files, the dataset, and its number of training images and last class, or what is said of it.
SOURCES: list[tuple[dict[str, bytes], str, tuple[int, str] | str]] = [
    *(
        ({"x.csv": text(LABELS, FLAT, header=names)}, "csv:x.csv", (20, "9"))
        for names in (NAMED, f"label,{MATRIX}", ",".join(map(str, range(785))), f'"y",{PIXELS}')
    ),
    ({"x.csv": text(FLAT, LABELS, header=f"{PIXELS},class")}, "csv:x.csv", (20, "9")),  # OpenML
    ({"x.csv": PLAIN.replace(b",", b'", "').replace(b"\n", b"\r\n")}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(FLAT, LABELS)}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(range(N), LABELS, FLAT, header=f",{NAMED}")}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(range(N), FLAT, LABELS)}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(range(N), FLAT)}, "csv:x.csv", "has images without labels"),
    ({"train.csv": PLAIN, "test.csv": text(range(N), FLAT)}, "csv:train.csv", (20, "9")),
    ({"train.csv": PLAIN, "val.csv": PLAIN}, "csv:train.csv", "no training image"),  # the same
    ({"x.csv": PLAIN.decode().encode("utf-16")}, "csv:x.csv", (20, "9")),
    ({"x.csv": PLAIN.replace(b"\n", b"\r")}, "csv:x.csv", (20, "9")),
    ({"x.csv.gz": gzip.compress(PLAIN)}, "csv:x.csv.gz", (20, "9")),
    ({"x.csv": text(LABELS / 1, FLAT / 1)}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(LABELS, FLAT / 255, header=NAMED)}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(LABELS + 40, FLAT, header=NAMED)}, "csv:x.csv", (20, "49")),
    ({"x.csv": text(np.array([*"abcdefghij"])[LABELS], FLAT)}, "csv:x.csv", (20, "j")),
    ({"x.csv": text(ONE_HOT, FLAT)}, "csv:x.csv", (20, "9")),
    ({"x.csv": text(FLAT, ONE_HOT)}, "csv:x.csv", (20, "9")),
    *(
        ({"x.csv": text(LABELS, FLAT, separator=sign, header=NAMED)}, "csv:x.csv", (20, "9"))
        for sign in ";\t "
    ),
    (
        {"x.csv": text([7] * N, FLAT, header=NAMED)},
        "csv:x.csv",
        "all 30 images are of one class, 7",
    ),
    ({"x.csv": text(range(N), FLAT, header=NAMED)}, "csv:x.csv", "30 images have 30 labels, as if"),
    ({"x.csv": text(LABELS, FLAT, FLAT)}, "csv:x.csv", "has 1569 columns"),
    ({"x.csv": text(LABELS, LABELS, FLAT)}, "csv:x.csv", "no column is clearly the label"),
    *(
        ({"x.npz": npz(x_train=images, y_train=labels, **TEST_SET)}, "npz:x.npz", (25, "9"))
        for images, labels in (
            (FLAT.astype("i8"), LABELS.astype("i4")),
            (np.asfortranarray(IMAGES[..., None]), LABELS[:, None].astype("f4")),
            ((IMAGES / 255).astype("f4"), LABELS),  # scaled for a network
        )
    ),
    ({"x.npz": npz(X_train=FLAT, Y_train=ONE_HOT)}, "npz:x.npz", (20, "9")),
    ({"x.npz": npz(train_images=IMAGES[:, None], train_labels=LABELS)}, "npz:x.npz", (20, "9")),
    (
        {"x.npz": npz(arr_0=IMAGES[5:], arr_1=IMAGES[:5], arr_2=LABELS[5:], arr_3=LABELS[:5])},
        "npz:x.npz",
        (25, "9"),
    ),
    (
        {"x.npz": npz(trainX=IMAGES, trainY=LABELS.astype(str), mean=FLAT[0])},
        "npz:x.npz",
        (20, "9"),
    ),
    (
        {
            "x.npz": npz(
                x_train=IMAGES, y_train=LABELS, x_val=IMAGES[5:], y_val=LABELS[5:], **TEST_SET
            )
        },
        "npz:x.npz",
        "no training image",
    ),  # what is left is in the validation set
    ({"k-imgs.npz": npz(a=IMAGES), "k-labels.npz": npz(a=LABELS)}, "npz:k-imgs.npz", (20, "9")),
    (
        {"i.idx3": idx(IMAGES), "images.idx3": idx(IMAGES), "labels.idx1": idx(LABELS)},
        "idx:images.idx3",
        (20, "9"),
    ),
    (SETS, "idx:.", "holds 2 datasets: give a file of one"),
    (
        {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx2-int": idx(QMNIST, 12)},
        "idx:.",
        (20, "9"),
    ),
    (
        {"images.idx3": idx(IMAGES)[:-1], "labels.idx1": idx(LABELS)},
        "idx:.",
        "is damaged, or no IDX",
    ),
    (
        {"x.pkl.gz": gzip.compress(pickle.dumps(IMAGES))},
        "npz:x.pkl.gz",
        "is a pickle, .* x_train=x",
    ),
    ({"x.h5": b"\x89HDF" + bytes(99)}, "csv:x.h5", r"an HDF5 file: h = h5py.File\('x.h5'\); numpy"),
]


@pytest.mark.parametrize(("files", "dataset", "expected"), SOURCES)
def test_what_people_bring_is_read_or_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    dataset: str,
    expected: tuple[int, str] | str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_bytes(content)

    def load() -> DataSplits:
        return load_splits(DataConfig(dataset=dataset), ObjectiveConfig(), 0, to_train=True)

    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load()
        return
    splits = load()
    assert (len(splits.train), splits.class_names[-1]) == expected
    found = {image.tobytes(): label for image, label in zip(IMAGES, LABELS.tolist(), strict=True)}
    for split in (splits.train, splits.test):
        for image, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
            assert found[image.tobytes()] == label


@pytest.mark.parametrize("name", ["x.mat", "x.pkl.gz", "x.h5", "x.parquet"])
def test_what_it_becomes_in_python_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    package: Any = None
    if name == "x.mat":
        scipy.io.savemat(name, {"X": FLAT, "y": LABELS})
    elif name == "x.pkl.gz":
        with gzip.open(name, "wb") as file:
            pickle.dump(((IMAGES, LABELS),) * 3, file)
    elif name == "x.h5":
        package = pytest.importorskip("h5py")
        package.File(name, "w").update({"X": IMAGES, "y": LABELS})
    else:
        package = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        package.DataFrame({"image": [*FLAT], "label": LABELS}).to_parquet(name)
    with pytest.raises(DataError) as caught:
        load_dataset(f"npz:{name}", tmp_path)
    line = str(caught.value).partition(": ")[2]
    known = {"numpy": np, "scipy": scipy, "pickle": pickle, "gzip": gzip}
    exec(line, known | {"h5py": package, "pandas": package})
    check(read("npz", tmp_path / "digits.npz")[0])


@pytest.mark.parametrize(
    ("turn", "names"),
    [
        (lambda images: 255 - images, "inverted"),
        (lambda images: images.transpose(0, 2, 1), "transposed"),
        (lambda images: np.rot90(images, 1, (1, 2)), "transposed, mirrored"),
        (lambda images: images, None),
    ],
)
def test_images_of_another_convention_are_named(
    tmp_path: Path, log_warnings: Callable[[], list[str]], turn: Any, names: str | None
) -> None:
    digits = generate(60, seed=1)
    np.savez(tmp_path / "x.npz", x=turn(digits.images.numpy()), y=digits.labels.numpy())
    dataset = f"npz:{tmp_path / 'x.npz'}"
    torch.save(load_model("world").model.state_dict(), tmp_path / "foreign.pt")
    evaluate(tmp_path / "foreign.pt", dataset=dataset)  # whose activation would be guessed, too
    if names is None:
        assert log_warnings() == []
        return
    (warning,) = log_warnings()
    assert f"the images are {names}, compared" in warning
    turned = warning.rpartition("--dataset ")[2]
    assert evaluate("world", dataset=turned).result.accuracy > 0.8
    upright = load_dataset(turned, tmp_path).whole
    assert upright is not None
    check(upright, digits.images.numpy(), digits.labels.numpy())
