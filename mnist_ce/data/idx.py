"""IDX, the format of MNIST's files: a magic number, the sizes, then the values.

Four bytes (0, 0, type, number of dimensions), one big-endian uint32 per dimension, then the values
in row-major order; here the type is always 8, unsigned bytes. The format is described where MNIST
was first published: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mnist_ce.system.errors import DataError
from mnist_ce.system.files import write_atomically
from mnist_ce.system.text import one_line

_UINT8 = 8
_MAX_DIMENSIONS = 3


def idx_header(shape: Sequence[int]) -> bytes:
    """Return the bytes before the values of an unsigned-byte array of this shape."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UINT8, len(shape), *shape)


def idx_parts(tensor: Tensor) -> tuple[bytes, memoryview]:
    """Return the header and the values of the IDX file that holds a tensor of values 0 to 255."""
    return idx_header(tensor.shape), tensor.to(torch.uint8).contiguous().numpy().data


def read_idx(path: Path) -> Tensor:
    """Read an unpacked IDX file: uint8, labels [n] or images [n, 28, 28].

    A `DataError` if the file cannot be read or is not such a file, whole.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic[:3] != bytes((0, 0, _UINT8)) or magic[3:] not in (b"\1", b"\2", b"\3"):
                raise DataError(f"{path} is not an IDX file of bytes: it starts with {magic.hex()}")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise DataError(f"{path} is cut short: it ends within its header")
            shape = struct.unpack(f">{magic[3]}I", sizes)
            num_values, promised = path.stat().st_size - file.tell(), math.prod(shape)
            # Compared before memory is allocated for what a damaged header promises.
            content = bytearray(promised if num_values == promised else 0)
            if num_values != promised or file.readinto(content) != promised:
                raise DataError(f"{path} holds {num_values:,} values; its header says {promised:,}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if not content:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def write_idx(path: Path, tensor: Tensor) -> None:
    """Write a tensor of one to three dimensions and values 0 to 255 as an unpacked IDX file."""
    in_range = torch.equal(tensor.to(torch.uint8).to(tensor.dtype), tensor)
    if not 1 <= tensor.dim() <= _MAX_DIMENSIONS or not in_range:
        raise DataError(f"{path}: IDX needs 1 to {_MAX_DIMENSIONS} dimensions, values 0 to 255")
    write_atomically(path, b"".join(idx_parts(tensor)))
