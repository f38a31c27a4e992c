"""Labelled images in files of arrays: MNIST as CSV, Keras's `.npz`, and IDX."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
MAX_FILES = 1_000
LABEL_NAMES = ("label", "labels", "class", "digit", "target", "targets", "y")
INDEX_NAMES = ("", "id", "index", "unnamed: 0", "imageid", "image_id")
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


def read_arrays(kind: str, path: Path) -> dict[str, Arrays]:
    """Read images and labels of `csv`, `npz` or `idx`, from one file or several, by part.

    Files belong together whose names differ in the words for part and role alone. What an array is
    its shape says, or else its name, as of `x_train`, `train_images` or `labels`. A DataError for
    whatever cannot be read.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    seen = []
    for file in _files(path):
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


def _files(path: Path) -> list[Path]:
    """Return the files that belong together: those of a folder, or a file and those beside it."""
    is_folder = path.is_dir()
    folder = path if is_folder else path.parent
    entries = sorted(folder.iterdir())[:MAX_FILES] if folder.is_dir() else []
    files = {file: sort_name(file.name) for file in entries if file.is_file()}
    if is_folder:
        files = {file: sort for file, sort in files.items() if any(sort[1:])}
        if len(stems := {stem for stem, *_ in files.values()}) != 1:
            raise DataError(
                f"{path} holds {len(stems)} datasets: give a file of one, not the folder"
            )
        return [*{sort: file for file, sort in reversed(files.items())}.values()]
    stem, part, role = sort_name(path.name)
    beside = {
        sort: file
        for file, sort in reversed(files.items())
        if sort[0] == stem and (sort[1] == part or part == "train") and bool(sort[2]) == bool(role)
    }
    return [*(beside | {(stem, part, role): path}).values()]


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, int, int]]:
    """Open a file, unpacked, with the bytes and images it may have; errors are a `DataError`."""
    try:
        with open_regular(path, 2 * MAX_BYTES) as file:
            head, size = file.read(4), file.seek(0, os.SEEK_END)
            file.seek(0)
            unpacked: Any = gzip.GzipFile(fileobj=file) if head.startswith(b"\x1f\x8b") else file
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
        first = text.readline(MAX_LINE_CHARS).replace('"', "").strip(" \r\n")
        separator = max(",;\t ", key=first.count).strip(" ") or None
        cells = [cell.strip().lower() for cell in first.removeprefix("#").split(separator)]
        extra = len(cells) - NUM_PIXELS
        if not 0 <= extra <= MAX_EXTRA:
            shown = truncate_middle(sanitize(", ".join(cells)), 40)
            raise DataError(
                f"{path} has {len(cells)} columns ({shown}); {NUM_PIXELS + 1} are expected: a "
                f"label and {NUM_PIXELS} pixels; folder:DIR reads images in files"
            )
        num_texts = sum(not re.fullmatch(r"[-+.\de]+", cell) for cell in cells)
        # Not all pixels differ.
        is_header = num_texts > len(cells) / 2 or len({*cells}) == len(cells)
        line = 0

        def lines() -> Iterator[str]:
            nonlocal line
            text.seek(0)
            line = size = 0
            while content := text.readline(MAX_LINE_CHARS):
                line, size = line + 1, size + len(content)
                if size > max_bytes or line > max_lines + is_header:
                    limits = f"{max_bytes:,} bytes or {max_lines:,} lines"
                    raise DataError(f"{path} has more than {limits}")
                if line > is_header:
                    yield content.replace('"', "")

        # Of the columns at both ends `_arrays` says which are pixels; they may hold anything.
        ends, reason = (object, (extra,)), ""
        for pixel in (np.uint8, np.float32):
            inner = (pixel, (NUM_PIXELS - extra,))
            dtype = [("left", *ends), ("inner", *inner), ("right", *ends)]
            try:
                with warnings.catch_warnings(action="error"):
                    table = np.loadtxt(lines(), dtype, comments=None, delimiter=separator, ndmin=1)
                return _arrays(table, cells if is_header else [], path)
            except (ValueError, Warning) as error:
                reason = re.sub(' at row .*?(?=,|$)|; use .*|: "<.*', "", sanitize(one_line(error)))
        raise DataError(f"{path}, line {line}: {truncate_middle(reason, 200)}")


def _arrays(table: NDArray[Any], header: list[str], path: Path) -> dict[str, NDArray[Any]]:
    """Return the images and, if there are any, the labels of the lines of a table."""
    cells = np.concatenate([table["left"], table["right"]], axis=1)  # [n, 2 extra] texts
    extra = cells.shape[1] // 2
    names = header[:extra] + header[NUM_PIXELS:] if header else ["pixel"] * 2 * extra
    numbers = np.array([*map(_number, cells.flat)], np.float64).reshape(cells.shape)
    columns = [
        texts.astype(str) if np.isnan(values).any() else values
        for texts, values in zip(cells.T, numbers.T, strict=True)
    ]
    left = [*range(2 * extra)]
    labels = [place for place in left if names[place] in LABEL_NAMES][:1]
    for place, name in enumerate(names):
        is_index = name in INDEX_NAMES or _numbers_rows(columns[place])
        if is_index and place not in labels and len(left) > extra:
            left.remove(place)
    num_labels = len(left) - extra
    if num_labels == 1 and not labels:
        labels = [max(left[0], left[-1], key=lambda place: _likeness(columns[place]))]
    elif num_labels > 1:
        for side in (left[:num_labels], left[-num_labels:]):
            if (numbers[:, side].sum(axis=1) == 1).all():  # one-hot
                labels = side
    if len(labels) != num_labels:
        raise DataError(f"{path}: no column is clearly the label: call it so in a header")
    pixels = [place for place in left if place not in labels]
    is_whole = np.isin(numbers[:, pixels], range(256)).all()
    outer = np.zeros(numbers.shape, np.uint8 if is_whole else np.float32)
    outer[:, pixels] = numbers[:, pixels].clip(-1, 256)
    num_left = sum(place < extra for place in pixels)
    images = np.concatenate(
        [outer[:, pixels[:num_left]], table["inner"], outer[:, pixels[num_left:]]], axis=1
    )
    if images.dtype != np.uint8:
        is_wrong = ~((images >= 0) & (images <= 255))  # true for NaN, too
        if is_wrong.any():
            line, pixel = np.argwhere(is_wrong)[0] + 1
            where = f"line {line + bool(header)}, pixel {pixel}"
            raise DataError(f"{path}, {where}: not a number from 0 to 255")
    return {"images": images} | ({"labels": cells[:, labels]} if labels else {})


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _numbers_rows(values: NDArray[Any]) -> bool:
    """Return whether more than ten values all differ, as names and running numbers do."""
    if len(values) <= 10 or len(np.unique(values)) < len(values):
        return False
    return values.dtype.kind == "U" or values.max() > 255 or np.ptp(values) == len(values) - 1


def _likeness(values: NDArray[Any]) -> tuple[int, int]:
    """Return how much a column is one of labels rather than pixels: what compares higher is."""
    distinct = np.unique(values)
    if len(distinct) < 2 or values.dtype.kind == "U":
        return (3 if len(distinct) > 1 else 0), 0
    is_digit = bool(distinct[-1] <= 9 and (distinct == np.trunc(distinct)).all())
    return (2, len(distinct)) if is_digit else (int(len(distinct) <= len(values) / 2), 0)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz`; no pickle is read."""
    with _opened(path, ".npz") as (file, max_bytes, max_images):
        infos = zipfile.ZipFile(file).infolist()
        if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > max_bytes:
            raise DataError(
                f"{path} unpacks to more than {max_bytes:,} bytes or {MAX_FILES:,} arrays"
            )
        file.seek(0)
        arrays = {name: np.asarray(array) for name, array in np.load(file).items()}
        for name, array in arrays.items():
            if array.ndim and len(array) > max_images:
                raise DataError(f"{path}: {name} holds {len(array):,}, more than {max_images:,}")
        return arrays


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
