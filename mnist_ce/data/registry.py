"""Where MNIST and its relatives come from, and how their files are recognised."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist_ce.data.idx import idx_header
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import one_line

__all__ = ["Source", "SourceFile", "md5_of_bytes", "source_of"]

_NUM_CLASSES = 10
_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_TRAIN_IMAGES, _TEST_IMAGES = 60_000, 10_000
_SHAPES = {
    "train-images-idx3-ubyte": (_TRAIN_IMAGES, 28, 28),
    "train-labels-idx1-ubyte": (_TRAIN_IMAGES,),
    "t10k-images-idx3-ubyte": (_TEST_IMAGES, 28, 28),
    "t10k-labels-idx1-ubyte": (_TEST_IMAGES,),
}
# Of MNIST's files after unpacking; torchvision knows only those of the packed ones.
_UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class SourceFile:
    """One of a dataset's four files.

    Attributes:
        name: Its name when unpacked; packed it ends in `.gz`.
        shape: What its header must say.
        packed_md5: MD5 (hex) of the `.gz`.
        unpacked_md5: MD5 (hex) after unpacking, where it is known.
    """

    name: str
    shape: tuple[int, ...]
    packed_md5: str
    unpacked_md5: str | None

    @property
    def header(self) -> bytes:
        """What it must begin with when unpacked."""
        return idx_header(self.shape)

    @property
    def num_bytes(self) -> int:
        """Its size when unpacked."""
        return len(self.header) + math.prod(self.shape)

    @property
    def max_packed_bytes(self) -> int:
        """More than gzip can make of it: deflate adds 5 bytes to a block it cannot compress."""
        return self.num_bytes + self.num_bytes // 1000 + 4096

    def problem_in(self, content: bytes) -> str | None:
        """Return what is wrong with the size, header or labels of unpacked content, if anything."""
        if len(content) != self.num_bytes:
            more = "more than " if len(content) > self.num_bytes else ""
            return f"{more}{min(len(content), self.num_bytes):,} of {self.num_bytes:,} bytes"
        header = content[: len(self.header)]
        if header != self.header:
            return f"its header is {header.hex()}, expected {self.header.hex()}"
        if len(self.shape) == 1 and max(content[len(header) :], default=0) >= _NUM_CLASSES:
            return f"a label is not below {_NUM_CLASSES}"
        return None

    def unpack(self, packed: bytes, origin: str) -> bytes:
        """Unpack a `.gz`, never to more than the size that the file must have.

        Args:
            packed: The content of the `.gz`.
            origin: The path or address to name in an error.

        Raises:
            DataError: If anything else comes out.
        """
        decompressor = zlib.decompressobj(wbits=31)  # gzip
        try:
            content = decompressor.decompress(packed, self.num_bytes + 1)
        except zlib.error as error:
            raise DataError(f"{origin} is damaged ({error})") from error
        problem = self.problem_in(content)
        if problem is None and not decompressor.eof:
            problem = "it ends early"
        if problem is None and self.unpacked_md5 not in (None, md5_of_bytes(content)):
            problem = f"unpacked it has MD5 {md5_of_bytes(content)}, expected {self.unpacked_md5}"
        if problem is not None:
            raise DataError(f"{origin} is damaged ({problem})")
        return content


@dataclass(frozen=True)
class Source:
    """A dataset as torchvision knows it.

    Attributes:
        name: `mnist`, `fashion-mnist` or `kmnist`.
        torchvision_class: `torchvision.datasets.MNIST` or a subclass of it.
        files: Training images, training labels, test images, test labels.
        mirrors: Where to download from, each ending in a slash.
        foreign_md5s: MD5s of files of the same names that belong to the other datasets.
    """

    name: str
    torchvision_class: Any
    files: tuple[SourceFile, ...]
    mirrors: tuple[str, ...]
    foreign_md5s: frozenset[str]

    def raw_folder(self, root: Path) -> Path:
        """Return the folder under `root` in which torchvision's class reads unpacked files."""
        return root / str(self.torchvision_class.__name__) / "raw"


def source_of(name: str) -> Source:
    """Describe a dataset by what torchvision's class says of it.

    Raises:
        DataError: If torchvision is missing or does not work with the torch that is installed.
    """
    datasets = _torchvision_datasets()
    files = {
        known: tuple(
            SourceFile(
                name=packed_name.removesuffix(".gz"),
                shape=_SHAPES[packed_name.removesuffix(".gz")],
                packed_md5=md5,
                unpacked_md5=(
                    _UNPACKED_MD5[packed_name.removesuffix(".gz")] if known == "mnist" else None
                ),
            )
            for packed_name, md5 in getattr(datasets, class_name).resources
        )
        for known, class_name in _CLASSES.items()
    }
    torchvision_class = getattr(datasets, _CLASSES[name])
    foreign = (file for other in files if other != name for file in files[other])
    return Source(
        name=name,
        torchvision_class=torchvision_class,
        files=files[name],
        mirrors=tuple(torchvision_class.mirrors),
        foreign_md5s=frozenset(
            md5 for file in foreign for md5 in (file.packed_md5, file.unpacked_md5) if md5
        ),
    )


def md5_of_bytes(content: bytes) -> str:
    """Return the MD5 of some bytes as 32 hex digits (an identity check, not a security one)."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _torchvision_datasets() -> Any:  # noqa: ANN401 - torchvision carries no types
    """Import `torchvision.datasets`, or say why it cannot be in one line."""
    try:
        from torchvision import datasets
    # Built for another torch it fails in many ways, "operator torchvision::nms does not exist"
    # (RuntimeError) and undefined symbols (OSError) among them.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise DataError(
            f"torchvision {_version('torchvision')} does not work with torch {_version('torch')} "
            f"({one_line(error)}): install a matching pair as "
            "https://pytorch.org/get-started/locally/ says"
        ) from error
    return datasets


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
