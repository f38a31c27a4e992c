"""Pictures that cannot be read say so in one line, at once."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ce.reader import Options, Workers, find_pictures, open_picture, prepare
from mnist_ce.system.errors import ImageError


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    Image.effect_noise((60, 60), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello"), "not a picture"),
    "truncated": (truncated, "damaged"),
    "folder": (lambda path: path.mkdir(), "a folder that holds no pictures"),
    "pipe": (lambda path: os.mkfifo(path), "not a file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "header of 60000×60000": (
        lambda path: path.write_bytes(png(60_000, 60_000, b"x")),
        "pixels",
    ),
    "bomb": (
        lambda path: path.write_bytes(png(12_000, 12_000, zlib.compress(bytes(12_001 * 12_000)))),
        "pixels",
    ),
    "damaged data": (lambda path: path.write_bytes(png(50, 50, b"nothing packed")), "damaged"),
    "a thread": (lambda path: Image.new("L", (3000, 2)).save(path), "too narrow"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ImageError) as caught:
        open_picture(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text
    assert prepare(path, Options()).error == text


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5), np.uint8),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((5, 5), np.float32),
        np.zeros(9, np.uint8),
    ],
)
def test_arrays_of_other_shapes_and_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="array"):
        open_picture(array)


def test_a_picture_given_in_memory_is_left_alone() -> None:
    image = Image.new("L", (2400, 1200), 77)
    assert max(open_picture(image).size) <= 1200
    assert image.size == (2400, 1200)


@pytest.mark.parametrize("num_processes", [0, 2])
def test_workers_keep_the_order_and_tell_errors(num_processes: int, tmp_path: Path) -> None:
    paths: list[Path] = []
    for i in range(40):
        path = tmp_path / f"{i} ü.png"
        page = np.full((50, 50), 255, np.uint8)
        page[10:40, 5 + i // 2 : 10 + i // 2] = 0
        Image.fromarray(page).save(path)
        paths.append(path)
    paths[7].write_text("no picture")
    with Workers(num_processes) as workers:
        prepared = list(workers.prepare_all(paths, Options()))
    assert [p.error is not None for p in prepared] == [i == 7 for i in range(40)]
    alone = [prepare(path, Options()) for path in paths]
    for a, b in zip(prepared, alone, strict=True):
        assert [r.digits[0].box for r in a.readings] == [r.digits[0].box for r in b.readings]


def test_sources_are_files_folders_patterns_and_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "[1].png"):
        (folder / name).touch()
    (tmp_path / "none").mkdir()
    found = list(
        find_pictures(["a folder", "a folder/?.png", "a folder/[1].png", "gone*.png", "none", "-"])
    )
    assert found == [
        *(Path("a folder") / name for name in ("[1].png", "a.JPG", "b.png")),
        Path("a folder/b.png"),
        Path("a folder/[1].png"),
        Path("gone*.png"),
        Path("none"),
        None,
    ]
