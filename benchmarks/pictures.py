"""What the benchmarks of predictions share: MNIST's training images, and those never learned from.

The images set aside are the validation split of seed 0, so that a network trained with
`--set data.validation_size=5000` has not seen them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_ce.data.dataset import load_dataset, split_validation

__all__ = ["training_images"]

Images = NDArray[np.uint8]


@cache
def training_images(folder: Path) -> tuple[Images, Images, NDArray[np.int64]]:
    """Return 55,000 images to fit on, 5,000 to measure on, and the labels of the latter.

    Args:
        folder: As for `--data-dir`.

    Returns:
        uint8 [55000, 28, 28], uint8 [5000, 28, 28] and int64 [5000].
    """
    dataset = load_dataset("mnist", folder)
    fitted, held_out = split_validation(dataset.train, 5_000, seed=0)
    return fitted.images.numpy(), held_out.images.numpy(), held_out.labels.numpy()
