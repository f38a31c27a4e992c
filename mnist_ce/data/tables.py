"""Labelled images in one file: MNIST as CSV, and Keras's `.npz`."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mnist_ce.data.splits import Split
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import open_regular
from mnist_ce.system.text import one_line, sanitize, truncate_middle

NUM_PIXELS = 28 * 28
NUM_COLUMNS = NUM_PIXELS + 1
MAX_BYTES = 1 << 29  # unpacked; MNIST's 70,000 images take 128 MB as CSV, 439 MB as float64
MAX_IMAGES = 100_000  # of one array: packed zeros are small, and would take minutes to evaluate
MAX_LINE_BYTES = 1 << 16
MAX_DIGITS = 3
BLOCK_BYTES = 1 << 22  # of text parsed at a time; its arrays take some 60 MB
LABEL_NAMES = ("label", "labels", "class", "digit", "target", "y")
NEWLINE, COMMA, ZERO = b"\n,0"


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    """Open a file; what it makes the libraries that read it raise becomes a `DataError`."""
    try:
        with open_regular(path) as file:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise DataError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}")
            yield file
    except DataError:
        raise
    except Exception as error:  # which they raise for a damaged file is not documented
        reason = truncate_middle(sanitize(one_line(error)), 200)
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from error


def read_csv(path: Path) -> tuple[Split, Split | None]:
    """Read MNIST as CSV: one image per line, a label and 784 pixels from 0 to 255.

    The label comes first, or where a header names it. The test images come from the file beside
    it whose name has `test` for `train`, None where there is none or, as Kaggle's, without labels.
    """
    train = _read_table(path)
    if train is None:
        raise DataError(f"{path} has {NUM_PIXELS} columns: pixels without labels")
    name = path.name
    for old, new in (("train", "test"), ("Train", "Test"), ("TRAIN", "TEST")):
        name = name.replace(old, new, 1)
    is_there = name != path.name and path.with_name(name).is_file()
    return train, _read_table(path.with_name(name)) if is_there else None


def _read_table(path: Path) -> Split | None:
    # None where there are 784 columns: no labels.
    with _opened(path, "CSV") as file:
        first = file.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
        names = _clean(first).decode("ascii", "replace").strip().lower().split(",")
        has_header = len(set(names)) == len(names)  # 785 pixels cannot all differ
        if len(names) not in (NUM_PIXELS, NUM_COLUMNS):
            raise DataError(
                f"{path} has {len(names)} columns; {NUM_COLUMNS} are expected: a label and "
                f"{NUM_PIXELS} pixels"
            )
        if len(names) == NUM_PIXELS:
            return None
        blocks, line = [np.empty((0, NUM_COLUMNS), np.uint8)], 1 + has_header
        text = b"" if has_header else first
        while text := text + file.read(BLOCK_BYTES):
            if text := (text + file.readline(MAX_LINE_BYTES)).rstrip(b"\r\n"):
                blocks.append(_parse(_clean(text), path, line))
                line += len(blocks[-1])
            text = b""
    table = np.concatenate(blocks)
    column = next((names.index(name) for name in LABEL_NAMES if name in names), 0)
    pixels = np.delete(table, column, axis=1).reshape(-1, 28, 28)
    return Split.from_arrays(pixels, table[:, column], str(path))


def _clean(text: bytes) -> bytes:
    return text.translate(None, b'\r" ')


def _parse(text: bytes, path: Path, line: int) -> NDArray[np.uint8]:
    """Return lines of numbers from 0 to 255, uint8 [n, 785], all of them at once.

    NumPy's own parser takes 20 times as long for Kaggle's 77 MB. `line` is the number of the first
    line; a `DataError` names the first cell that is no such number.
    """
    chars = np.frombuffer(text + b"\n", np.uint8)
    is_end = (chars == NEWLINE) | (chars == COMMA)  # of a cell
    digits = chars - np.uint8(ZERO)  # a character that is no digit becomes 10 or more
    ends = np.flatnonzero(is_end)
    lengths = np.diff(ends, prepend=-1) - 1
    values = np.zeros(len(ends), np.uint16)  # up to 255 · 111, which fits
    for place in range(MAX_DIGITS):  # units, tens, hundreds, where the cell is so long
        values += np.where(lengths > place, digits[ends - 1 - place], 0) * np.uint16(10**place)
    are_numbers = (lengths >= 1) & (lengths <= MAX_DIGITS) & (values <= 255)
    line_ends = np.flatnonzero(chars[ends] == NEWLINE)  # the cells that end a line
    is_table = np.array_equal(line_ends, np.arange(NUM_COLUMNS - 1, len(ends), NUM_COLUMNS))
    if not is_table or not are_numbers.all() or not (digits[~is_end] <= 9).all():
        raise _first_error(text, path, line)
    return values.astype(np.uint8).reshape(-1, NUM_COLUMNS)


def _first_error(block: bytes, path: Path, first_line: int) -> DataError:
    for line, row in enumerate(block.split(b"\n"), start=first_line):
        cells = row.decode("ascii", "replace").split(",")
        if len(cells) != NUM_COLUMNS:
            return DataError(f"{path}, line {line}: {len(cells)} columns, expected {NUM_COLUMNS}")
        for column, cell in enumerate(cells, start=1):
            if not re.fullmatch("[0-9]{1,3}", cell) or int(cell) > 255:
                text = truncate_middle(sanitize(cell), 20)
                return DataError(
                    f"{path}, line {line}, column {column}: {text!r} is not a whole number from 0 "
                    "to 255"
                )
    raise AssertionError("the two ways to parse disagree")


def read_npz(path: Path) -> tuple[Split, Split | None]:
    """Read x_train, y_train and, if there, x_test and y_test of an `.npz`, as Keras has them.

    For the arrays see `Split.from_arrays`. No pickle is read.
    """
    with _opened(path, ".npz") as file, zipfile.ZipFile(file) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not {"x_train", "y_train"} <= infos.keys():
            names = truncate_middle(sanitize(", ".join(infos)), 100)
            raise DataError(f"{path} has no x_train and y_train (it holds {names})")
        if sum(info.file_size for info in infos.values()) > MAX_BYTES:
            raise DataError(f"{path} unpacks to more than {MAX_BYTES:,} bytes")
        parts = ["train", "test"] if {"x_test", "y_test"} <= infos.keys() else ["train"]
        arrays = {
            part: [_array(archive, infos[f"{name}_{part}"]) for name in "xy"] for part in parts
        }
    splits = [Split.from_arrays(x, y, f"{path}, {part}") for part, (x, y) in arrays.items()]
    return splits[0], splits[1] if len(splits) > 1 else None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """Read an array; a header may promise any shape, and an array of objects is a pickle."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is not compressed as NumPy does it")
    with archive.open(info) as file:
        is_first = npy.read_magic(file) == (1, 0)  # 3.0 is 2.0 in UTF-8
        read_header = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if shape and shape[0] > MAX_IMAGES:
            raise ValueError(f"{info.filename} holds {shape[0]:,}, more than {MAX_IMAGES:,}")
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} is shorter than its header says")
        file.seek(0)
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if file.read(1):  # read to the end, so that its checksum is verified
            raise ValueError(f"{info.filename} goes on after its array")
    return array
