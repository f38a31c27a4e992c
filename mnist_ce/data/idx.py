"""IDX, the format of MNIST's files: a magic number, the sizes, then the bytes.

Four bytes (0, 0, type, number of dimensions), one big-endian uint32 per dimension, then the values
in row-major order; here the type is always 8, unsigned bytes. The format is described where MNIST
was first published: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from mnist_ce.data.splits import Split
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import one_line, write_atomically

__all__ = ["idx_header", "read_idx", "read_split", "write_idx"]

_UINT8 = 8
_MAX_DIMENSIONS = 3


def idx_header(shape: Sequence[int]) -> bytes:
    """Return the bytes that stand before the values of an unsigned-byte array of this shape."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UINT8, len(shape), *shape)


def read_idx(path: Path) -> torch.Tensor:
    """Read an unpacked IDX file of unsigned bytes.

    What the header promises is compared with the size of the file before anything is allocated.

    Returns:
        uint8, with one to three dimensions: labels `[n]`, images `[n, 28, 28]`.

    Raises:
        DataError: If the file cannot be read or is not such a file, whole.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != bytes((0, 0, _UINT8)):
                raise DataError(
                    f"{path} is not an IDX file of bytes: it starts with {magic.hex() or 'nothing'}"
                )
            if not 1 <= magic[3] <= _MAX_DIMENSIONS:
                raise DataError(f"{path} has {magic[3]} dimensions; labels have 1 and images 3")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise DataError(f"{path} is cut short: it ends within its header")
            shape = struct.unpack(f">{magic[3]}I", sizes)
            promised = 4 + len(sizes) + math.prod(shape)
            if size != promised:
                raise DataError(
                    f"{path} is damaged: its header promises {promised:,} bytes and it has {size:,}"
                )
            content = bytearray(promised - 4 - len(sizes))
            if file.readinto(content) != len(content):
                raise DataError(f"{path} was cut short while it was read")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if not content:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def read_split(images_path: Path, labels_path: Path, num_classes: int) -> Split:
    """Read images and their labels, and check that they belong together.

    Raises:
        DataError: If a file is damaged, the images are not 28×28, the numbers of images and labels
            differ, or a label is not below `num_classes`.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_path} holds {list(images.shape)} bytes, not images of 28×28")
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{labels_path} holds {list(labels.shape)} labels for the {len(images)} images of "
            f"{images_path}"
        )
    if len(labels) and int(labels.max()) >= num_classes:
        raise DataError(
            f"{labels_path} holds label {int(labels.max())}; labels are 0 to {num_classes - 1}"
        )
    return Split(images, labels.long())


def write_idx(path: Path, tensor: torch.Tensor) -> None:
    """Write a tensor as an unpacked IDX file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        tensor: Values that are whole numbers from 0 to 255, of any integer dtype and one to three
            dimensions, on the CPU.

    Raises:
        OSError: If the file cannot be written.
    """
    assert 1 <= tensor.dim() <= _MAX_DIMENSIONS
    values = tensor.to(torch.uint8).contiguous()
    assert torch.equal(values.to(tensor.dtype), tensor)
    write_atomically(path, idx_header(values.shape) + values.numpy().tobytes())
