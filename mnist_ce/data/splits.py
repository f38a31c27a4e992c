"""Images with their labels, and what can be cut out of them: classes and a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import UsageError

__all__ = ["Dataset", "Split", "select_classes", "split_validation"]


@dataclass(frozen=True)
class Split:
    """Images and their labels, in the order of the files.

    Attributes:
        images: uint8 `[n, 28, 28]`, ink bright on black.
        labels: int64 `[n]`, each an index into the dataset's class names.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the meaning of their labels.

    Attributes:
        name: `mnist`, `fashion-mnist`, `kmnist` or `synthetic`; what was loaded, never `auto`.
        train: The training images.
        test: The test images: for reporting, never for choosing anything.
        class_names: What label 0, 1, … means.
        digest: SHA-256 (hex) of the four unpacked IDX files, one after the other: training images,
            training labels, test images, test labels. It names the data that was read, so it stays
            the same when classes are selected.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str


def select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Keep only the images of some classes.

    Args:
        dataset: What to choose from.
        classes: Labels to keep, as `dataset` numbers them. The first becomes label 0, the next
            label 1, and so on; the order of the images stays.

    Returns:
        The smaller dataset, its class names in the order given.

    Raises:
        UsageError: If a class is unknown or given twice, or none is given.
    """
    num_classes = len(dataset.class_names)
    if not classes:
        raise UsageError("data.classes: name at least one class")
    for position, label in enumerate(classes):
        if not 0 <= label < num_classes:
            raise UsageError(
                f"data.classes: {dataset.name} has no class {label}; its classes are 0 to "
                f"{num_classes - 1}"
            )
        if label in classes[:position]:
            raise UsageError(f"data.classes: class {label} is given twice")

    renumbered = torch.full((num_classes,), -1, dtype=torch.int64)
    renumbered[list(classes)] = torch.arange(len(classes))

    def cut(split: Split) -> Split:
        labels = renumbered[split.labels]  # [n], -1 where the class is left out
        kept = labels >= 0
        return Split(split.images[kept], labels[kept])

    return replace(
        dataset,
        train=cut(dataset.train),
        test=cut(dataset.test),
        class_names=tuple(dataset.class_names[label] for label in classes),
    )


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Set images of the training split aside for validation.

    Which ones depends on `seed` alone, not on any global generator. Both parts keep the order of
    `train`.

    Args:
        train: The training images.
        size: How many images to set aside; 0 gives an empty validation split.
        seed: The run's seed, not negative.

    Returns:
        The remaining training split and the validation split.

    Raises:
        UsageError: If `size` is negative or leaves no image to train on.
    """
    if not 0 <= size < len(train):
        raise UsageError(
            f"data.validation_size is {size}; with {len(train)} training images it must be from 0 "
            f"to {len(train) - 1}"
        )
    order = torch.randperm(len(train), generator=derived_generator(seed, "validation"))
    set_aside = torch.zeros(len(train), dtype=torch.bool)
    set_aside[order[:size]] = True
    return (
        Split(train.images[~set_aside], train.labels[~set_aside]),
        Split(train.images[set_aside], train.labels[set_aside]),
    )
