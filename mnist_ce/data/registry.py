"""MNIST, Fashion-MNIST and KMNIST as torchvision lists them, with the shapes of their files."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_ce.system.device import environment
from mnist_ce.system.errors import DataError
from mnist_ce.system.text import one_line

TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
# Each file's shape, and the MD5 of MNIST's when unpacked; torchvision lists those of the .gz only.
FILES = {
    "train-images-idx3-ubyte": ((60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ((60_000,), "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ((10_000,), "27ae3e4e09519cfbb04c329615203637"),
}
# Of the values of all four files in order, as `Dataset.digest` takes it.
DIGESTS = {"mnist": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"}
_NUM_CLASSES = 10
_UINT8 = 8

DIGITS = tuple("0123456789")
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "synthetic": DIGITS,
}
"""The datasets, and the meaning of label 0, 1, … of each, as in torchvision."""


def idx_header(shape: Sequence[int]) -> bytes:
    """Return what precedes the values, row-major, of an unsigned-byte array in an IDX file.

    Four bytes (0, 0, type, number of dimensions) and one big-endian uint32 per dimension, as
    described where MNIST was first published: http://yann.lecun.com/exdb/mnist/.
    """
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UINT8, len(shape), *shape)


def idx_parts(tensor: Tensor) -> tuple[bytes, memoryview]:
    """Return the header and the values of the IDX file that holds a tensor of values 0 to 255."""
    return idx_header(tensor.shape), tensor.to(torch.uint8).contiguous().numpy().data


@dataclass(frozen=True)
class DataFile:
    """One of a dataset's four files."""

    name: str  # when unpacked; packed it ends in `.gz`
    shape: tuple[int, ...]
    packed_md5: str  # in hex
    unpacked_md5: str | None  # None where it is not known

    @property
    def header(self) -> bytes:
        """The first bytes of the unpacked file."""
        return idx_header(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size of the unpacked file."""
        return len(self.header) + math.prod(self.shape)

    @property
    def max_packed_bytes(self) -> int:
        """An upper bound for the `.gz`: deflate adds 5 bytes to a block it cannot compress."""
        return self.num_bytes + self.num_bytes // 1000 + 4096

    def problem_in(self, content: bytes) -> str | None:
        """Return what is wrong with the size, header or labels of unpacked content, if anything."""
        if len(content) != self.num_bytes:
            return f"{len(content):,} bytes, expected {self.num_bytes:,}"
        header, values = content[: len(self.header)], content[len(self.header) :]
        if header != self.header:
            return f"its header is {header.hex()}, expected {self.header.hex()}"
        if len(self.shape) == 1 and max(values) >= _NUM_CLASSES:
            return f"a label is not below {_NUM_CLASSES}"
        return None

    def unpack(self, packed: bytes, origin: str) -> bytes:
        """Unpack a `.gz` from `origin`; a `DataError` if the result cannot be this file."""
        decompressor = zlib.decompressobj(wbits=31)  # gzip
        try:
            content = decompressor.decompress(packed, self.num_bytes + 1)
        except zlib.error as error:
            raise DataError(f"{origin} is damaged ({error})") from error
        if problem := self.problem_in(content) or ("" if decompressor.eof else "it ends early"):
            raise DataError(f"{origin} is damaged ({problem})")
        return content


def torchvision_class(dataset: str) -> Any:  # noqa: ANN401 - torchvision carries no types
    """Return `torchvision.datasets.MNIST` or the subclass of it that reads a dataset."""
    try:
        from torchvision import datasets
    # Built for another torch it fails in many ways, "operator torchvision::nms does not exist"
    # (RuntimeError) and undefined symbols (OSError) among them.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        versions = environment()
        raise DataError(
            f"torchvision {versions.get('torchvision', '(not installed)')} does not work with "
            f"torch {versions.get('torch')} ({one_line(error)}): install a matching pair as "
            "https://pytorch.org/get-started/locally/ says"
        ) from error
    return getattr(datasets, TORCHVISION_CLASSES[dataset])


def files_of(dataset: str) -> list[DataFile]:
    """Return a dataset's training images, training labels, test images and test labels."""
    packed_md5s = dict(torchvision_class(dataset).resources)
    return [
        DataFile(name, shape, packed_md5s[f"{name}.gz"], md5 if dataset == "mnist" else None)
        for name, (shape, md5) in FILES.items()
    ]
