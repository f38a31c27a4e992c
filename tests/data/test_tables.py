"""Labelled images in one file: CSV and `.npz`."""

from __future__ import annotations

import contextlib
import io
import os
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
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnist_ce.cli import main
from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.splits import DIGITS, Dataset, Split, split_test
from mnist_ce.data.tables import read_csv, read_npz
from mnist_ce.system.errors import DataError

N = 30
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 28, 28), "u1")
LABELS = np.arange(N, dtype="u1") % 10
ROWS = [
    f"{label},{','.join(map(str, image.ravel()))}"
    for image, label in zip(IMAGES, LABELS, strict=True)
]
PIXELS = ",".join(f"pixel{i}" for i in range(784))


def check(split: Split | None, images: Any = IMAGES, labels: Any = LABELS) -> None:
    assert split is not None
    assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(split.images.numpy(), images)
    assert np.array_equal(split.labels.numpy(), labels)


@pytest.mark.parametrize(
    "lines",
    [
        [f"label,{PIXELS}", *ROWS],  # Kaggle's digit recogniser
        ROWS,
        ["label," + ",".join(f"{y}x{x}" for y in range(1, 29) for x in range(1, 29)), *ROWS],
        [",".join(map(str, range(785))), *ROWS],  # pandas
        [f"{PIXELS},class", *(row[2:] + "," + row[0] for row in ROWS)],  # OpenML
        [f'"label",{PIXELS}', *(row.replace(",", ", ") + "\r" for row in ROWS), ""],
    ],
)
def test_csv_with_any_usual_header(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "digits.csv"
    path.write_text("\n".join(lines))
    train, test = read_csv(path)
    check(train)
    assert test is None


def test_the_test_images_lie_beside_or_are_split_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ce.data.tables.BLOCK_BYTES", 5_000)  # several blocks
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


def test_a_label_needs_a_class_and_a_class_three_images(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    for rows, message in (
        (["10" + ",0" * 784], "too few images: give at least three of a class"),
        ([*ROWS, "10,9" + ",0" * 783], "has the label 10, but its classes are 0 to 9"),
    ):
        path.write_text("\n".join(rows))
        with pytest.raises(DataError, match=message):
            load_dataset(f"csv:{path}", tmp_path)


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
        Split.from_arrays(IMAGES[3:8], LABELS[3:8], ""),
        Split.from_arrays(IMAGES, LABELS, ""),
        DIGITS,
    )
    monkeypatch.setattr(dataset_module, "DatasetFiles", lambda *_, **__: Mock(load=lambda: mnist))
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:5], "y_test": LABELS[:5]}
    np.savez("x.npz", **arrays)  # type: ignore[arg-type]
    dataset = load_dataset(path, tmp_path)
    check(dataset.train, IMAGES[5:], LABELS[5:])
    check(dataset.test, IMAGES[:5], LABELS[:5])
    expected = [f"5 of {tmp_path / 'x.npz'}'s 30 training images are among the test images, and"]
    if dataset.mnist is not None:
        check(dataset.mnist, IMAGES[5:8], LABELS[5:8])
        expected += ["2 of MNIST's 5 training images are among"]
    for warning, start in zip(log_warnings(), expected, strict=True):
        assert warning.startswith(start)


@settings(max_examples=30, deadline=None)
@given(
    table=arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(785))),
    block=st.integers(1, 10_000),
    bad=st.one_of(
        st.none(),
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 784),
            st.sampled_from(["", "256", "1000", "-1", "1.0", "a", "٣", "nan"]),
        ),
    ),
)
def test_csv_is_read_as_numpy_does_and_the_first_bad_cell_is_named(
    tmp_path_factory: pytest.TempPathFactory,
    table: Any,
    block: int,
    bad: tuple[int, int, str] | None,
) -> None:
    rows = [list(map(str, row)) for row in table.tolist()]
    if bad is not None:
        rows[bad[0] % len(rows)][bad[1]] = bad[2]
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_ce.data.tables.BLOCK_BYTES", block)
        if bad is None:
            expected = np.loadtxt(path, np.uint8, delimiter=",", ndmin=2)
            split, _ = read_csv(path)
            pixels = expected[:, 1:].reshape(-1, 28, 28)
            check(split, pixels * (255 if pixels.max() <= 1 else 1), expected[:, 0])
        else:
            place = f"line {bad[0] % len(rows) + 1}, column {bad[1] + 1}: "
            with pytest.raises(DataError, match=place):
                read_csv(path)


@given(place=st.integers(0), value=st.integers(0, 255))
def test_no_altered_byte_of_an_npz_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    content = bytearray(GOOD)
    content[place % len(GOOD)] = value
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        check(read_npz(path)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS[0] + "\n" + ROWS[1][:-9], "line 2: 78"),
        (ROWS[0] + "\n\n" + ROWS[1], "line 2: 1 columns, expected 785"),
        (ROWS[0] + "\n5,256" + ",0" * 783, "line 2, column 2: '256' is not a whole number"),
        (ROWS[0] + "\n5,\x1b[31m" + ",0" * 783, r"column 2: '\?\[31m' is not"),
        ("", "1 columns; 785 are expected"),
        (f"label,{PIXELS}\n", "there is no image"),
        ("\0" * 100_000, "1 columns; 785"),
        (PIXELS + "\n" + "0," * 783 + "0", "pixels without labels"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "digits.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES, LABELS),
        (IMAGES.reshape(N, 784).astype("i8"), LABELS.astype("i4")),
        (np.asfortranarray(IMAGES[..., None]), LABELS[:, None].astype("f4")),
        ((IMAGES / 255).astype("f4"), LABELS),  # scaled for a network
    ],
)
def test_npz_as_keras_has_it(tmp_path: Path, images: Any, labels: Any) -> None:
    path = tmp_path / "mnist.npz"
    path.write_bytes(npz(x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5]))
    train, test = read_npz(path)
    check(train)
    check(test, IMAGES[:5], LABELS[:5])
    path.write_bytes(npz(x_train=images, y_train=labels))
    assert read_npz(path)[1] is None


HOLES = np.where(IMAGES == 0, np.nan, IMAGES)
GOOD = npz(x_train=IMAGES, y_train=LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(a=IMAGES, b=LABELS), r"has no x_train and y_train \(it holds a, b\)"),
        (npz(x_train=IMAGES[:, :27], y_train=LABELS), r"images of shape \[30, 27, 28\]"),
        (npz(x_train=IMAGES, y_train=LABELS[1:]), r"labels of shape \[29\], expected \[30\]"),
        (npz(x_train=HOLES, y_train=LABELS), "a pixel is not from 0 to 255.* from nan to nan"),
        (npz(x_train=IMAGES.astype("i8") - 300, y_train=LABELS), "a pixel is not"),
        (npz(x_train=IMAGES, y_train=-1.0 - LABELS), "a label is not a whole number from 0"),
        (npz(x_train=IMAGES, y_train=LABELS / 2), "a label is not a whole number from 0"),
        (
            npz(x_train=IMAGES, y_train=LABELS * 1e300),
            "a label is not a whole number from 0 to 999",
        ),
        (npz(x_train=IMAGES, y_train=np.full(N, np.inf)), "a label is not a whole number from 0"),
        (npz(x_train=IMAGES[:0], y_train=LABELS[:0]), "no image"),
        (npz(**{"x_train.txt": IMAGES, "y_train": LABELS}), "has no x_train and y_train"),
        (npz(x_train=IMAGES.astype(object), y_train=LABELS), "Object arrays cannot be loaded"),
        (npz(x_train=IMAGES.astype(str), y_train=LABELS), "not numbers"),
        (b"", "not a zip"),
        (GOOD[: len(GOOD) // 2], "cannot be read as .npz"),
        (GOOD[:5000] + b"??" + GOOD[5002:], "cannot be read"),
    ],
)
def test_npz_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(path)
    assert str(path) in str(caught.value)


def header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


Y_TRAIN = zipfile.ZipFile(io.BytesIO(GOOD)).read("y_train.npy")
BITS = b"\xff" * 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:60] + BITS + GOOD[70:], "cannot be read as .npz: "),  # the packed data
        (re.sub(b"(?s)(PK\1\2.{4}).", b"\\1\x01", GOOD), "is encrypted"),
        (archive(("x_train.npy", b""), ("y_train.npy", Y_TRAIN)), "cannot be read as .npz"),
        (archive(("a/x_train.npy", b""), ("a/y_train.npy", b"")), r"holds a/x_train, a/y_train"),
        (archive(("mnist.npz", GOOD)), "it holds mnist.npz"),
        # The directory says that 600 MB come out of it.
        (
            re.sub(b"(?s)(PK\1\2.{20}).{4}", b"\\1\0\0\xc0\x23", GOOD),
            "unpacks to more than 536,870",
        ),
        (archive(("\x1b[31m.npy", b"")), r"it holds \?\[31m\)"),
        (
            archive(("x_train.npy", Y_TRAIN), ("y_train.npy", Y_TRAIN), method=zipfile.ZIP_LZMA),
            "is not compressed as NumPy does it",
        ),
        *(
            (archive(("x_train.npy", header(*text) + bytes(9)), ("y_train.npy", Y_TRAIN)), message)
            for text, message in (
                (("'|u1'", "(10**9, 28, 28)"), "cannot be read as .npz"),
                (("'|u1'", "(100001, 28, 28)"), "holds 100,001, more than 100,000"),
                (("'|u1'", "(99999, 28, 28)"), "is shorter than its header says"),
                (("'|u1'", "(3, 3)"), r"images of shape \[3, 3\]"),
                (("'|u1'", "(1,)"), "goes on after its array"),
                (("'|u1'", "(-1, 28, 28)"), "cannot be read as .npz"),
                (("'<M8[s]'", "(1,)"), "not numbers|goes on"),
                (("'|V9'", "(1,)"), "not numbers"),
                (("'nothing'", "(1,)"), "not a valid dtype"),
                (("'|u1'", "(" * 40 + ")" * 40), "cannot be read as .npz"),
            )
        ),
    ],
)
def test_an_archive_of_another_kind_gets_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(path)
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


def costly_files() -> dict[str, Callable[[], bytes]]:
    labels = np.arange(100_000, dtype="u1") % 10
    many, few = numbered(100_000, "u1"), numbered(60_000, "f8")
    return {
        "images.npz": lambda: npz(x_train=many + 1, y_train=labels, x_test=many, y_test=labels),
        "float64.npz": lambda: npz(x_train=few, y_train=labels[:60_000]),
        "members.npz": lambda: archive(*((f"{n}", b"") for n in range(100_000))),
        "zeros.csv": lambda: b"\n".join([b"0" + b",0" * 784] * 10_000),
        "nonsense.csv": lambda: b"\n".join([b"0" + b",0" * 784, *[b"a," * 7 * 10**6]]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", costly_files())
def test_a_file_of_16_mb_is_read_or_refused_in_bounds(tmp_path: Path, name: str) -> None:
    content = costly_files()[name]()
    assert len(content) <= 16e6
    (tmp_path / name).write_bytes(content)
    dataset = f"{name[-3:]}:{tmp_path / name}"
    command = [sys.executable, "-m", "mnist_ce", "evaluate", "mnist", "--dataset", dataset]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        errors = process.stderr.read().decode().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 1)
    assert len([line for line in errors if line.startswith("error")]) == process.returncode
    assert usage.ru_utime + usage.ru_stime < 10 * 2  # this program may share its core
    assert usage.ru_maxrss < 1.5e6  # kilobytes
