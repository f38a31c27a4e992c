"""Digits that the program draws itself: a stand-in for MNIST where that cannot be had."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from mnist_ce.data.idx import read_split, write_idx
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic.render import draw
from mnist_ce.data.synthetic.templates import STYLES
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, md5_of, one_line, write_atomically

__all__ = ["GENERATOR_VERSION", "generate", "load_synthetic"]

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
"""Counts the changes to what is drawn; stored files of another version are drawn again."""

_NUM_CLASSES = 10
_SPLITS = {"train": (60_000, 1), "t10k": (10_000, 2)}  # name in the files: images, seed
_RECORD = "synthetic.json"


def generate(num_images: int, seed: int) -> Split:
    """Draw digits, as many of each as can be, in random order.

    Equal arguments give equal images, whatever the number of threads, on one kind of processor and
    one version of torch; elsewhere a grey level may differ by one here and there.

    Args:
        num_images: How many to draw.
        seed: Any integer that fits 64 bits.

    Returns:
        Images, uint8 [num_images, 28, 28], and labels, int64 [num_images].
    """
    generator = torch.Generator().manual_seed(seed)
    num_threads = torch.get_num_threads()
    # One thread suffices for these many small steps; more would mostly wait for each other.
    torch.set_num_threads(1)
    try:
        return _generate(num_images, generator)
    finally:
        torch.set_num_threads(num_threads)


def _generate(num_images: int, generator: torch.Generator) -> Split:
    images, labels = [], []
    for digit in range(_NUM_CLASSES):
        styles = [style for style in STYLES if style.digit == digit]
        num_wanted = len(range(digit, num_images, _NUM_CLASSES))
        shares = torch.tensor([style.share for style in styles], dtype=torch.float32)
        drawn = torch.rand(num_wanted, generator=generator) * shares.sum()
        chosen = torch.searchsorted(shares.cumsum(0), drawn)
        for index, style in enumerate(styles):
            images.append(draw(style, int((chosen == index).sum()), generator))
        labels.append(torch.full((num_wanted,), digit))
    order = torch.randperm(num_images, generator=generator)
    return Split(torch.cat(images)[order], torch.cat(labels)[order])


def load_synthetic(data_dir: Path) -> tuple[Split, Split]:
    """Read the synthetic digits, or draw and keep them where they are not there whole.

    They are kept as IDX files in `synthetic/` below `data_dir` or, where that cannot be written,
    below the user's cache; where neither can be, they are drawn each time. A record of the
    generator's version and of each file's MD5 is written last, so that what another version drew,
    or what is damaged or incomplete, is drawn again.

    Args:
        data_dir: The data directory; it need not exist yet.

    Returns:
        60,000 training and 10,000 test digits.
    """
    folders = [data_dir / "synthetic", cache_dir() / "synthetic"]
    for folder in folders:
        stored = _read(folder)
        if stored is not None:
            return stored
    logger.info("drawing 60,000 + 10,000 synthetic digits")
    train, test = (generate(num_images, seed) for num_images, seed in _SPLITS.values())
    for folder in folders:
        try:
            _write(folder, train, test)
        except OSError as error:
            logger.info(f"the synthetic digits cannot be kept in {folder}: {one_line(error)}")
        else:
            break
    return train, test


def _read(folder: Path) -> tuple[Split, Split] | None:
    """Return the stored digits, or None where they are not all there, undamaged and current."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        if record != _record(folder):
            return None
        train, test = (
            read_split(*_paths(folder, name), num_classes=_NUM_CLASSES) for name in _SPLITS
        )
    except (OSError, ValueError, DataError):
        return None
    return train, test


def _write(folder: Path, train: Split, test: Split) -> None:
    """Store the digits; two processes that do so at once write the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in zip(_SPLITS, (train, test), strict=True):
        images_path, labels_path = _paths(folder, name)
        write_idx(images_path, split.images)
        write_idx(labels_path, split.labels)
    write_atomically(folder / _RECORD, json.dumps(_record(folder), indent=2) + "\n")


def _record(folder: Path) -> dict[str, object]:
    """Return what the record of these files must say.

    Raises:
        OSError: If a file is not there or cannot be read.
    """
    paths = [path for name in _SPLITS for path in _paths(folder, name)]
    return {
        "generator_version": GENERATOR_VERSION,
        "md5": {path.name: md5_of(path) for path in paths},
    }


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of one split's images and labels, named as MNIST's are."""
    return folder / f"{name}-images-idx3-ubyte", folder / f"{name}-labels-idx1-ubyte"
