"""The synthetic digits, which the program draws itself: a substitute for MNIST."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import torch

from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic.render import draw, load_styles
from mnist_ce.data.tables import read_npz
from mnist_ce.system.device import use_threads
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, write_atomically
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

FILE_NAME = "digits-1.npz"  # with the version of the drawings; others are drawn again
SPLITS = {"train": (60_000, 1), "test": (10_000, 2)}  # images, seed
_NUM_CLASSES = 10


def generate(num_images: int, seed: int, styles: str = "mnist") -> Split:
    """Draw digits, as many of each as can be, in random order.

    `styles` are those of `load_styles`.
    Equal arguments give equal images on one kind of processor and one version of torch; elsewhere
    a grey level may differ by one here and there.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    with use_threads(1):  # more would mostly wait for each other, as the steps are many and small
        for digit in range(_NUM_CLASSES):
            ways = [style for style in load_styles(styles) if style.digit == digit]
            num_wanted = len(range(digit, num_images, _NUM_CLASSES))
            weights = torch.tensor([style.weight for style in ways], dtype=torch.float32)
            positions = torch.rand(num_wanted, generator=generator) * weights.sum()
            chosen = torch.searchsorted(weights.cumsum(0), positions)
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
    paths = [folder / "synthetic" / FILE_NAME for folder in (data_dir, cache_dir())]
    for path in paths:
        with contextlib.suppress(DataError):  # missing or damaged
            train, test = read_npz(path)
            if test is not None:
                return train, test
    logger.info("drawing 60,000 + 10,000 synthetic digits")
    train, test = (generate(num_images, seed) for num_images, seed in SPLITS.values())
    for path in paths:
        try:
            write_synthetic(path, train, test)
            break
        except OSError as error:
            logger.info(f"the synthetic digits cannot be kept in {path.parent}: {one_line(error)}")
    return train, test


def write_synthetic(path: Path, train: Split, test: Split) -> None:
    """Store digits as Keras stores MNIST, with a checksum of each array: see `read_npz`."""
    content = io.BytesIO()
    np.savez(
        content,
        x_train=train.images.numpy(),
        y_train=train.labels.byte().numpy(),
        x_test=test.images.numpy(),
        y_test=test.labels.byte().numpy(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
