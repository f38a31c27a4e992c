"""Labelled images in files of arrays: MNIST as CSV, Keras's `.npz`, and IDX."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mnist_ce.data.splits import IMAGE_SHAPES, Arrays
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import open_regular
from mnist_ce.system.text import one_line, sanitize, truncate_middle

NUM_PIXELS = 28 * 28
MAX_EXTRA = 64  # columns beside the pixels: an index, a label, or one-hot ones
MAX_BYTES = 1 << 29  # unpacked; MNIST's 70,000 images take 128 MB as CSV, 439 MB as float64
MAX_IMAGES = 100_000  # of one array: packed zeros are small, and would take minutes to evaluate
MIN_PACKED_BYTES = 160  # of an image where there are more; MNIST's take 165
MAX_RATIO = 8  # of unpacked to packed bytes, above `MAX_BYTES`
MAX_LINE_CHARS = 1 << 16
MAX_DIGITS = 3
MAX_FILES = 1_000
BLOCK_CHARS = 1 << 22  # of text parsed at a time; its arrays take some 60 MB
LABEL_NAMES = ("label", "labels", "class", "digit", "target", "targets", "y")
INDEX_NAMES = ("", "id", "index", "unnamed: 0", "imageid", "image_id")
NEWLINE, COMMA, ZERO = b"\n,0"
PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# The words in the names of files, folders and arrays, by what they are.
PARTS = {
    "train": r"train(ing)?(set)?",
    "validation": r"val(id(ation)?)?(set)?|dev",
    "test": r"test(ing)?(set)?|t10k",
}
ROLES = {
    "images": r"x|images?|imgs?|data|pixels",
    "labels": r"y|labels?|targets?|class(es)?",
    "": r"idx\d?|ubyte|int|gz",  # nothing: in the names of files that belong together
}
# What other files of data begin with, what they are, and what in Python makes an .npz of them.
_SAVE = "numpy.savez('digits.npz', x_train="
FOREIGN = {
    rb"MATLAB": f"a MATLAB file: m = scipy.io.loadmat(FILE); {_SAVE}m['X'], "
    "y_train=m['y'].ravel())",
    rb"\x89HDF": f"an HDF5 file: h = h5py.File(FILE); {_SAVE}h['X'][:], y_train=h['y'][:])",
    rb"PAR1": f"Parquet: t = pandas.read_parquet(FILE); {_SAVE}numpy.stack(t['image']), "
    "y_train=t['label'])",
    rb"\x80[\x02-\x05]": "a pickle, which can run code: (x, y), _, (a, b) = pickle.load(gzip.open("
    f"FILE), encoding='latin1'); {_SAVE}x, y_train=y, x_test=a, y_test=b)",
    rb"\s*<": "a web page: download the file itself",
    rb"\x89PNG|\xff\xd8\xff": "an image: folder:DIR reads a folder of them",
}


def sort_name(name: str) -> tuple[tuple[str, ...], str | None, str | None]:
    """Return the words of a name without those for a part or a role, the part and the role.

    `x_train` and `xTrain` are of the part `train` and the role `images`.
    """
    words = re.findall(r"t10k|idx\d|[a-z]+|\d+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())

    def find(kinds: Mapping[str, str]) -> str | None:
        forms = kinds.items()
        return next((k for k, form in forms if any(re.fullmatch(form, w) for w in words)), None)

    every = "|".join((*PARTS.values(), *ROLES.values()))
    return tuple(w for w in words if not re.fullmatch(every, w)), find(PARTS), find(ROLES) or None


def read_arrays(kind: str, path: Path, *, alone: bool = False) -> dict[str, Arrays]:
    """Read images and labels of `csv`, `npz` or `idx`, from one file or several, by part.

    Of a folder, all files are read. Beside a file of training images lie those for validation and
    testing, and beside images their labels: with names that differ in the words for that alone.
    With `alone` the other parts are left. What an array is its shape says, or else its name, as of
    `x_train`, `train_images` or `labels`. A DataError for whatever cannot be read.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    seen = []
    for file in _files(path, alone=alone):
        for name, array in READERS[kind](file).items():
            seen.append(name)
            is_image = array.shape[1:] in IMAGE_SHAPES or array.ndim > 2
            role = "images" if is_image else sort_name(name)[2] or ("labels" if array.ndim else "")
            part = sort_name(name)[1] or sort_name(file.name)[1] or "train"
            found.setdefault(f"{part} {role}", []).append(array)
    parts = {}
    images = found.get("train images", [])
    if len(images) == 2 and "test images" not in found:  # arr_0, arr_1, …: as they were saved
        labels = found.get("train labels", [])
        found |= {"test images": images[1:], "test labels": labels[1:]}
    for part in PARTS:
        for image in found.get(f"{part} images", [])[:1]:
            labels = found.get(f"{part} labels", [])
            fitting = [label for label in labels if label.shape[:1] == image.shape[:1]] or labels
            parts[part] = Arrays(image, fitting[0] if fitting else None)
    if not parts:
        names = truncate_middle(sanitize(", ".join(seen)), 100)
        raise DataError(f"{path} has no images, such as x_train (it holds {names or 'nothing'})")
    return parts


def _files(path: Path, *, alone: bool) -> list[Path]:
    """Return the files that belong together: those of a folder, or a file and those beside it."""
    is_folder = path.is_dir()
    stem, part, role = sort_name(path.name)
    if not is_folder and part is role is None:
        return [path]
    folder = path if is_folder else path.parent
    entries = sorted(folder.iterdir())[:MAX_FILES] if folder.is_dir() else []
    files = {path: (stem, part, role)} if not is_folder else {}
    files |= {file: sort_name(file.name) for file in entries if file.is_file()}
    if is_folder:
        files = {file: sort for file, sort in files.items() if any(sort[1:])}
        if len(stems := {sort[0] for sort in files.values()}) != 1:
            raise DataError(
                f"{path} holds {len(stems)} datasets: give a file of one, not the folder"
            )
    chosen: dict[tuple[str | None, str | None], Path] = {}
    for file, (other, its_part, its_role) in files.items():
        is_wanted = its_part == part or (part == "train" and not alone)
        if is_folder or (other == stem and is_wanted and bool(role) == bool(its_role)):
            chosen.setdefault((its_part, its_role), file)
    return [*chosen.values()]


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, int, int]]:
    """Open a file, unpacked, with the bytes and images it may have; errors are a `DataError`."""
    try:
        with open_regular(path, 2 * MAX_BYTES) as file:
            head, size = file.read(8), file.seek(0, os.SEEK_END)
            file.seek(0)
            opener = next((PACKED[magic] for magic in PACKED if head.startswith(magic)), None)
            unpacked: Any = opener(file) if opener else file
            if head.startswith(b"PK") and kind == "CSV":
                archive = zipfile.ZipFile(file)
                if len(names := archive.namelist()) != 1:
                    shown = truncate_middle(sanitize(", ".join(names)), 60)
                    raise DataError(
                        f"{path} is an archive of {len(names)} files ({shown}): unpack it"
                    )
                unpacked = archive.open(names[0])
            buffered = io.BufferedReader(unpacked)
            head = buffered.peek(300)[:300]
            for form, what in FOREIGN.items():
                if re.match(form, head):
                    raise DataError(f"{path} is {what.replace('FILE', repr(path.name))}")
            num_images = max(MAX_IMAGES, size // MIN_PACKED_BYTES)
            yield buffered, max(MAX_BYTES, MAX_RATIO * size), num_images
    except DataError:
        raise
    except Exception as error:  # which they raise for a damaged file is not documented
        reason = truncate_middle(sanitize(one_line(error)), 200)
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from error


def read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Read a table of one image per line: 784 pixels, and a label before or after them.

    Its separator is a comma, semicolon, tab or blanks. A header may say which column is what; else
    the values do. Columns that number the rows are left out.
    """
    with _opened(path, "CSV") as (file, max_bytes, max_lines):
        head = file.peek(4)
        is_wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
        encoding = "utf-16" if is_wide else "utf-16-le" if head[1:2] == b"\0" else "utf-8-sig"
        text = io.TextIOWrapper(file, encoding, "replace")  # of any line ends
        first = text.readline(MAX_LINE_CHARS)
        separator = max(",;\t ", key=first.strip().count)
        header = _clean(first, separator).decode().removeprefix("#").lower().split(",")
        extra = len(header) - NUM_PIXELS
        if not 0 <= extra <= MAX_EXTRA:
            shown = truncate_middle(sanitize(", ".join(header)), 40)
            raise DataError(
                f"{path} has {len(header)} columns ({shown}); {NUM_PIXELS + 1} are expected: a "
                f"label and {NUM_PIXELS} pixels; folder:DIR reads images in files"
            )
        num_texts = sum(not re.fullmatch(r"[-+.\de]+", cell) for cell in header)
        # Not all pixels differ.
        is_header = num_texts > len(header) / 2 or len({*header}) == len(header)
        rest, size = "" if is_header else first, 0
        line = 1 + is_header
        blocks: list[NDArray[Any]] = [np.empty((0, len(header)), np.uint8)]
        sides: list[list[str]] = []
        while block := rest + text.read(BLOCK_CHARS):
            block, rest, size = block + text.readline(MAX_LINE_CHARS), "", size + len(block)
            if cleaned := _clean(block, separator):
                pixels, outer = _parse(cleaned, path, line, len(header))
                blocks.append(pixels)
                sides += outer
                line += len(pixels)
            if size > max_bytes or line > max_lines:
                raise DataError(f"{path} has more than {max_bytes:,} bytes or {max_lines:,} lines")
    return _arrays(np.concatenate(blocks), sides, header if is_header else [], path)


def _clean(text: str, separator: str) -> bytes:
    """Return lines without quotes and blanks, with commas between whole numbers as such."""
    text = text.strip(" \n").replace('"', "")
    if separator == " ":
        text = re.sub("[ \t]+", ",", re.sub(" *\n *", "\n", text))
    elif separator != ",":
        text = text.replace(",", ".").replace(separator, ",")  # decimal commas
    if " " in text:
        text = re.sub(r" *([,\n]) *", r"\1", text)
    if ".0" in text:
        text = f"{text}\n".replace(".0,", ",").replace(".0\n", "\n").rstrip("\n")
    return text.encode()


def _parse(
    text: bytes, path: Path, line: int, num_columns: int
) -> tuple[NDArray[Any], list[list[str]]]:
    """Return the numbers of lines of cells, [n, columns], and the texts of each outer column.

    NumPy's own parser takes 20 times as long for Kaggle's 77 MB of whole numbers from 0 to 255; it
    reads the others. `line` is the number of the first line; a `DataError` names the first cell
    that is no pixel. Outer columns, at either end, may hold anything.
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
    are_numbers[np.searchsorted(ends, np.flatnonzero((digits > 9) & ~is_end))] = False
    counts = np.diff(np.flatnonzero(chars[ends] == NEWLINE), prepend=-1)  # of the cells of a line
    if (counts != num_columns).any():
        row = int(np.argmax(counts != num_columns))
        raise DataError(f"{path}, line {line + row}: {counts[row]} columns, expected {num_columns}")
    table: NDArray[Any] = values.astype(np.uint8).reshape(-1, num_columns)
    extra = num_columns - NUM_PIXELS
    is_odd = np.logical_not(are_numbers.reshape(-1, num_columns).all(axis=0))
    is_odd[[*range(extra), *range(num_columns - extra, num_columns)]] = False
    lines = text.decode().split("\n")
    if (odd := np.flatnonzero(is_odd)).size:
        table = table.astype(np.float32)
        with contextlib.suppress(ValueError):
            table[:, odd] = np.loadtxt(
                lines, np.float32, comments=None, delimiter=",", usecols=odd.tolist(), ndmin=2
            )
            is_odd[odd] = ~((table[:, odd] >= 0) & (table[:, odd] <= 255)).all(axis=0)
        if is_odd.any():
            for place, cells in enumerate(lines, start=line):
                for column in odd.tolist():
                    _pixel(cells.split(",")[column], path, place, column)
            raise DataError(f"{path}, from line {line} on: a cell is not a number from 0 to 255")
    outer = [row.split(",", extra)[:extra] + row.rsplit(",", extra)[1:] for row in lines]
    return table, outer


def _pixel(cell: str, path: Path, line: int, column: int) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(cell)) <= 255:
            return value
    text = truncate_middle(sanitize(cell), 20)
    place = f"{path}, line {line}, column {column + 1}"
    raise DataError(f"{place}: {text!r} is not a number from 0 to 255")


def _arrays(
    table: NDArray[Any], sides: list[list[str]], header: Sequence[str], path: Path
) -> dict[str, NDArray[Any]]:
    """Return the images and, if there are any, the labels of a table and its outer columns."""
    extra, left = table.shape[1] - NUM_PIXELS, [*range(table.shape[1])]
    outer = {n: k for k, n in enumerate([*left[:extra], *left[len(left) - extra :]])}

    def column(number: int) -> NDArray[Any]:
        if number not in outer:
            return table[:, number]
        cells = np.array([row[outer[number]] for row in sides])
        with contextlib.suppress(ValueError):
            return cells.astype(np.float64)
        return cells

    named = [n for n, name in enumerate(header) if name in LABEL_NAMES][:1]
    # The columns `pixel0`, `pixel1`, … or `1x1`, … are equal but for their numbers.
    forms = [re.sub(r"\d+", "#", name) for name in header]
    pixel = max(forms, key=forms.count, default="")
    if named and forms.count(pixel) == NUM_PIXELS:
        left = [n for n in left if forms[n] == pixel or n in named]
    for number in outer:
        is_index = bool(header) and header[number] in INDEX_NAMES
        is_beside = len(left) > NUM_PIXELS and number in left and number not in named
        if is_beside and (is_index or _numbers_rows(column(number))):
            left.remove(number)
    extra = len(left) - NUM_PIXELS
    labels = named if extra == 1 else []
    if extra == 1 and not named:
        labels = [max(left[0], left[-1], key=lambda n: _likeness(column(n)))]
    elif extra > 1:  # one-hot
        for side in (left[:extra], left[-extra:]):
            rows = np.stack([*map(column, side)], axis=1)
            if rows.dtype.kind != "U" and (rows.sum(axis=1) == 1).all():
                labels = side
    if bool(extra) != bool(labels):
        raise DataError(f"{path}: no column is clearly the label: call it so in a header")
    pixels = [number for number in left if number not in labels]
    for number in outer.keys() & {*pixels}:
        cells = enumerate((row[outer[number]] for row in sides), start=1 + bool(header))
        values = [_pixel(cell, path, line, number) for line, cell in cells]
        table = table if np.isin(values, range(256)).all() else table.astype(np.float32)
        table[:, number] = values
    arrays = {"images": table[:, pixels]}
    return arrays | ({"labels": np.stack([*map(column, labels)], axis=1)} if labels else {})


def _numbers_rows(values: NDArray[Any]) -> bool:
    """Return whether more than ten values all differ, as names and running numbers do."""
    distinct = np.unique(values)
    if len(distinct) < len(values) or len(values) <= 10:
        return False
    is_range = values.dtype.kind != "U" and distinct[-1] - distinct[0] == len(values) - 1
    return bool(is_range or values.dtype.kind == "U" or distinct[-1] > 255)


def _likeness(values: NDArray[Any]) -> tuple[int, int]:
    """Return how much a column is one of labels rather than pixels: what compares higher is."""
    distinct = np.unique(values)
    if len(distinct) < 2 or values.dtype.kind == "U":
        return (3 if len(distinct) > 1 else 0), 0
    is_digit = bool(distinct[-1] <= 9 and (distinct == np.trunc(distinct)).all())
    return (2, len(distinct)) if is_digit else (int(len(distinct) <= len(values) / 2), 0)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz`; no pickle is read."""
    with _opened(path, ".npz") as (file, max_bytes, max_images), zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > max_bytes:
            raise DataError(
                f"{path} unpacks to more than {max_bytes:,} bytes or {MAX_FILES:,} arrays"
            )
        return {
            info.filename.removesuffix(".npy"): _member(archive, info, max_images)
            if info.filename.endswith(".npy")
            else np.empty(())
            for info in infos
        }


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_images: int) -> NDArray[Any]:
    """Read an array; a header may promise any shape, and an array of objects is a pickle."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is not compressed as NumPy does it")
    with archive.open(info) as file:
        is_first = npy.read_magic(file) == (1, 0)  # 3.0 is 2.0 in UTF-8
        read_header = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if shape and shape[0] > max_images:
            raise ValueError(f"{info.filename} holds {shape[0]:,}, more than {max_images:,}")
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} is shorter than its header says")
        file.seek(0)
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if file.read(1):  # read to the end, so that its checksum is verified
            raise ValueError(f"{info.filename} goes on after its array")
    return array


def read_idx(path: Path) -> dict[str, NDArray[Any]]:
    """Read the array of an IDX file: see `idx_header`."""
    with _opened(path, "IDX") as (file, max_bytes, max_images):
        *zeros, kind, num_dimensions = file.read(4)
        if kind not in IDX_TYPES:
            raise DataError(f"{path} is no IDX file")
        dtype = np.dtype(IDX_TYPES[kind])
        shape = struct.unpack(f">{num_dimensions}I", file.read(4 * num_dimensions))
        num_bytes = math.prod(shape) * dtype.itemsize
        content = file.read(min(num_bytes, max_bytes) + 1)
        if shape[0] > max_images:
            raise DataError(f"{path} holds {shape[0]:,}, more than {max_images:,}")
        if any(zeros) or len(content) != num_bytes:
            raise DataError(f"{path} is damaged, or no IDX file: {num_bytes:,} bytes should follow")
    array = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return {path.name: array}


READERS = {"csv": read_csv, "npz": read_npz, "idx": read_idx}
