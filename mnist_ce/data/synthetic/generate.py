"""The synthetic digits, which the program draws itself: a substitute for MNIST."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from mnist_ce.data.idx import idx_parts, read_idx, write_idx
from mnist_ce.data.registry import FILES
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic.render import draw
from mnist_ce.data.synthetic.templates import load_styles
from mnist_ce.system.device import use_threads
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, md5_of, write_atomically
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1  # of the drawings; stored files of another version are drawn again
_NUM_CLASSES = 10
SPLITS = {"train": (60_000, 1), "t10k": (10_000, 2)}  # images, seed
_RECORD = "synthetic.json"


def generate(num_images: int, seed: int, styles: str = "styles") -> Split:
    """Draw digits, as many of each as can be, in random order.

    The styles are those of MNIST's writers, or `hands`, those of the world; see `load_styles`.
    Equal arguments give equal images on one kind of processor and one version of torch; elsewhere
    a grey level may differ by one here and there.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    with use_threads(1):  # more would mostly wait for each other, as the steps are many and small
        for digit in range(_NUM_CLASSES):
            ways = [style for style in load_styles(styles) if style.digit == digit]
            num_wanted = len(range(digit, num_images, _NUM_CLASSES))
            shares = torch.tensor([style.share for style in ways], dtype=torch.float32)
            drawn = torch.rand(num_wanted, generator=generator) * shares.sum()
            chosen = torch.searchsorted(shares.cumsum(0), drawn)
            for index, style in enumerate(ways):
                images.append(draw(style, int((chosen == index).sum()), generator))
            labels.append(torch.full((num_wanted,), digit))
        order = torch.randperm(num_images, generator=generator)
        return Split(torch.cat(images), torch.cat(labels))[order]


def load_synthetic(data_dir: Path) -> tuple[Split, Split]:
    """Read 60,000 training and 10,000 test digits, or draw and keep them.

    They are kept in `synthetic/` below `data_dir` or, where that cannot be written, the user's
    cache; where neither can be, they are drawn each time.
    """
    folders = [data_dir / "synthetic", cache_dir() / "synthetic"]
    for folder in folders:
        if stored := read_synthetic(folder):
            return stored
    logger.info("drawing 60,000 + 10,000 synthetic digits")
    train, test = (generate(num_images, seed) for num_images, seed in SPLITS.values())
    for folder in folders:
        try:
            write_synthetic(folder, train, test)
            break
        except OSError as error:
            logger.info(f"the synthetic digits cannot be kept in {folder}: {one_line(error)}")
    return train, test


def read_synthetic(folder: Path) -> tuple[Split, Split] | None:
    """Return the stored digits; None where they are not whole, undamaged and of this version."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        tensors = [read_idx(folder / file) for file in FILES]
    except (OSError, ValueError, DataError):
        return None
    for images, labels in (tensors[:2], tensors[2:]):
        if images.shape != (*labels.shape, 28, 28) or (labels >= _NUM_CLASSES).any():
            return None
    if record != _record(tensors):
        return None
    return Split(tensors[0], tensors[1].long()), Split(tensors[2], tensors[3].long())


def write_synthetic(folder: Path, train: Split, test: Split) -> None:
    """Store digits as IDX files named as MNIST's are, and a record that makes them valid.

    The record is written last. Two processes that write at the same time write the same bytes.
    """
    tensors = [train.images, train.labels, test.images, test.labels]
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensor in zip(FILES, tensors, strict=True):
        write_idx(folder / file, tensor)
    write_atomically(folder / _RECORD, json.dumps(_record(tensors), indent=2) + "\n")


def _record(tensors: list[torch.Tensor]) -> dict[str, object]:
    digests = [md5_of(*idx_parts(tensor)) for tensor in tensors]
    return {"generator_version": GENERATOR_VERSION, "md5": dict(zip(FILES, digests, strict=True))}
