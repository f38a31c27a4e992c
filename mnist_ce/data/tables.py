"""Labelled images in one file: MNIST as CSV, and Keras's `.npz`."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ce.data.splits import Split
from mnist_ce.system.errors import DataError
from mnist_ce.system.text import one_line, sanitize, truncate_middle

NUM_PIXELS = 28 * 28
NUM_COLUMNS = NUM_PIXELS + 1
MAX_BYTES = 1 << 31  # MNIST's 70,000 images take 128 MB as CSV
MAX_LINE_BYTES = 1 << 16
MAX_DIGITS = 3
BLOCK_BYTES = 1 << 22  # of text parsed at a time; its arrays take some 60 MB
LABEL_NAMES = ("label", "labels", "class", "digit", "target", "y")
NEWLINE, COMMA, ZERO = b"\n,0"


def read_csv(path: Path) -> tuple[Split, Split | None]:
    """Read MNIST as CSV: one image per line, a label and 784 pixels from 0 to 255.

    The label comes first, or where a header names it. The test images come from the file beside
    it whose name has `test` for `train`, None where there is none or it has no labels, such as
    that of Kaggle's digit recogniser. A `DataError` if a file is no such table.
    """
    train = _read_table(path)
    if train is None:
        raise DataError(f"{path} has {NUM_PIXELS} columns: pixels without labels")
    sibling = path.with_name(re.sub("(?i)train", _test_like, path.name, count=1))
    is_there = sibling.name != path.name and sibling.is_file()
    return train, _read_table(sibling) if is_there else None


def _test_like(train: re.Match[str]) -> str:
    return "TEST" if train[0].isupper() else "Test" if train[0].istitle() else "test"


def _read_table(path: Path) -> Split | None:
    """Return the images and labels of a CSV file; None where it has 784 columns: no labels."""
    try:
        _check_size(path)
        with path.open("rb") as file:
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
            for text in _text_blocks(file, b"" if has_header else first):
                blocks.append(_parse(_clean(text), path, line))
                line += len(blocks[-1])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None
    table = np.concatenate(blocks)
    column = next((names.index(name) for name in LABEL_NAMES if name in names), 0)
    pixels = np.delete(table, column, axis=1).reshape(-1, 28, 28)
    return Split.from_arrays(pixels, table[:, column], str(path))


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}")


def _clean(text: bytes) -> bytes:
    return text.translate(None, b'\r" ')


def _text_blocks(file: io.BufferedReader, text: bytes) -> Iterator[bytes]:
    """Yield whole lines of a file after `text`, some megabytes at a time."""
    while block := text + file.read(BLOCK_BYTES):
        if block := (block + file.readline(MAX_LINE_BYTES)).rstrip(b"\r\n"):
            yield block
        text = b""


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
    """Read an `.npz` as Keras has it: x_train, y_train and, where they are there, x_test, y_test.

    For the arrays see `Split.from_arrays`. No pickle is read. A `DataError` if the file holds
    anything else.
    """
    try:
        _check_size(path)
        with zipfile.ZipFile(path) as archive:
            sizes = {
                info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()
            }
            if not {"x_train", "y_train"} <= sizes.keys():
                names = truncate_middle(sanitize(", ".join(sizes)), 100)
                raise DataError(f"{path} has no x_train and y_train (it holds {names})")
            if sum(sizes.values()) > MAX_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_BYTES:,} bytes")
            parts = ["train", "test"] if {"x_test", "y_test"} <= sizes.keys() else ["train"]
            splits = [
                Split.from_arrays(
                    _array(archive, f"x_{part}"), _array(archive, f"y_{part}"), f"{path}, {part}"
                )
                for part in parts
            ]
    # RuntimeError: encrypted, or packed in another way.
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as .npz: {one_line(error)}") from None
    return splits[0], splits[1] if len(splits) > 1 else None


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    content = archive.read(f"{name}.npy")
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-any-return]
    # A header may promise any shape; an array of objects is a pickle.
    except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise DataError(f"{archive.filename}: {name} cannot be read: {one_line(error)}") from None
