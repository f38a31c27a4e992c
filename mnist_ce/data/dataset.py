"""Datasets by name: the one door through which images come into the program."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from mnist_ce.data.download import DownloadError
from mnist_ce.data.idx import idx_header
from mnist_ce.data.splits import Dataset, Split, select_classes, split_validation
from mnist_ce.system.errors import UsageError

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "class_names_of",
    "load_dataset",
    "select_classes",
    "split_validation",
]

logger = logging.getLogger(__name__)

_DIGITS = tuple("0123456789")
# Fashion-MNIST and KMNIST name their classes as torchvision does.
_CLASS_NAMES = {
    "mnist": _DIGITS,
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "synthetic": _DIGITS,
}

DATASETS: tuple[str, ...] = tuple(_CLASS_NAMES)
"""The datasets there are. (`auto` is a way to choose one, not a dataset.)"""


def class_names_of(name: str) -> tuple[str, ...]:
    """Return what label 0, 1, … of a dataset means.

    Raises:
        UsageError: If there is no such dataset.
    """
    if name not in _CLASS_NAMES:
        raise _unknown(name)
    return _CLASS_NAMES[name]


def load_dataset(
    name: str,
    data_dir: Path,
    *,
    mirror: str | None = None,
) -> Dataset:
    """Load a dataset, downloading or drawing it first where need be.

    `auto` is MNIST where it lies in `data_dir` (or the user's cache) or can be downloaded, and
    else, with a warning, the synthetic digits; any other name never becomes another dataset.

    Args:
        name: One of `DATASETS`, or `auto`.
        data_dir: Where to look for the files and to keep them; where it cannot be written, the
            user's cache serves.
        mirror: The only address to download from, in place of the dataset's own.

    Raises:
        DataError: If the data is missing or damaged and cannot be downloaded or kept.
        UsageError: If there is no such dataset, or `mirror` is not an address.
    """
    # Late, because these modules need this folder's other ones and torchvision is slow to import.
    from mnist_ce.data.mnist import load_files

    if name not in (*DATASETS, "auto"):
        raise _unknown(name)
    if name == "synthetic":
        return _synthetic(data_dir)
    try:
        wanted = "mnist" if name == "auto" else name
        train, test = load_files(wanted, data_dir, mirror=mirror, hasty=name == "auto")
    except DownloadError as error:
        if name != "auto":
            raise
        logger.warning(
            f"NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
            f"those. {error} (--dataset mnist makes this an error, --dataset synthetic ends this "
            "warning)"
        )
        return _synthetic(data_dir)
    return _dataset(wanted, train, test)


def _synthetic(data_dir: Path) -> Dataset:
    from mnist_ce.data.synthetic.generate import load_synthetic

    return _dataset("synthetic", *load_synthetic(data_dir))


def _dataset(name: str, train: Split, test: Split) -> Dataset:
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        digest.update(idx_header(tensor.shape))
        digest.update(tensor.byte().contiguous().numpy().data)
    return Dataset(name, train, test, class_names_of(name), digest.hexdigest())


def _unknown(name: str) -> UsageError:
    return UsageError(f"there is no dataset {name!r}; choose from {', '.join(DATASETS)}, or auto")
