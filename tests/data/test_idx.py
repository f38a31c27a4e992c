from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from mnist_ce.data.idx import idx_header, read_idx, write_idx
from mnist_ce.system.errors import DataError


@pytest.mark.parametrize("shape", [(5,), (0,), (2, 3), (4, 28, 28), (0, 28, 28)])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "some-idx"
    tensor = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    write_idx(path, tensor)
    read = read_idx(path)
    assert (read.dtype, read.tolist()) == (torch.uint8, tensor.tolist())
    assert [entry.name for entry in tmp_path.iterdir()] == ["some-idx"]


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", torch.tensor([7, 2, 255]))
    assert (tmp_path / "labels").read_bytes() == bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 255])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an IDX file"),
        (b"\x1f\x8b\x08\x00 still packed", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00", "not an IDX file"),
        (b"\x00\x00\x08\x00", "not an IDX file"),
        (b"\x00\x00\x08\xff" + bytes(4 * 255), "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01\x00", "within its header"),
        # Four billion images in sixteen bytes: refused before anything is allocated.
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "its header says 3,367,254,359,280"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "holds 0 values"),
        (idx_header((3,)) + b"\x01\x02", "holds 2 values; its header says 3"),
        (idx_header((3,)) + b"\x01\x02\x03\x04", "holds 4 values; its header says 3"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "damaged-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}.*{reason}"):
        read_idx(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=f"{path} cannot be read: {reason}"):
            read_idx(path)


@pytest.mark.parametrize("values", [[256], [-1], 3, [[[[0]]]]])
def test_what_does_not_fit_the_format_is_not_written(tmp_path: Path, values: list[int]) -> None:
    with pytest.raises(DataError, match="labels: IDX needs 1 to 3 dimensions, values 0 to 255"):
        write_idx(tmp_path / "labels", torch.tensor(values))
    assert list(tmp_path.iterdir()) == []
