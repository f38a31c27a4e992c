"""What the benchmarks of predictions share: MNIST's training images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["training_images"]


def training_images(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return MNIST's training images, uint8 [60000, 28, 28], and labels, uint8 [60000].

    Args:
        folder: Holds the packed or unpacked files, flat or in torchvision's layout.
    """

    def content(name: str) -> bytes:
        for path in (folder / name, folder / "MNIST" / "raw" / name):
            if path.is_file():
                return path.read_bytes()
            if (packed := path.with_name(path.name + ".gz")).is_file():
                return gzip.decompress(packed.read_bytes())
        raise SystemExit(f"{name} is not in {folder}")

    images = np.frombuffer(content("train-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(content("train-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28).copy(), labels.copy()
