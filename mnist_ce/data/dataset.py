"""Datasets by name, and the splits and labels that a network is trained and tested on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mnist_ce.config import DataConfig, ObjectiveConfig
from mnist_ce.data.download import DownloadError
from mnist_ce.data.files import DatasetFiles
from mnist_ce.data.idx import idx_parts
from mnist_ce.data.splits import Split, split_validation
from mnist_ce.data.synthetic.generate import generate, load_synthetic
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import UsageError

logger = logging.getLogger(__name__)

_DIGITS = tuple("0123456789")
_DRAWN_SEED = 3  # another than those of the synthetic set
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "synthetic": _DIGITS,
}
"""The datasets, and the meaning of label 0, 1, … of each, as in torchvision."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the meaning of label 0, 1, ….

    `digest` is the SHA-256 (hex) of the four unpacked IDX files, training images, training labels,
    test images and test labels, of all classes.
    """

    name: str  # never `auto`
    train: Split
    test: Split  # for reporting, never for choosing anything
    class_names: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class DataSplits:
    """A dataset and an objective as in a config, split for training, validation and testing."""

    dataset: str  # the name; never `auto`
    digest: str  # as in `Dataset`
    class_names: tuple[str, ...]  # for a yes/no network, label 0 is no and 1 is yes
    objective: Objective
    train: Split
    validation: Split | None  # the images to choose by; None where none are held out
    test: Split  # the images to report on

    @property
    def num_outputs(self) -> int:
        """Logits per image."""
        return 1 if isinstance(self.objective, Binary) else len(self.class_names)

    def split(self, name: str) -> Split:
        """Return `train`, `validation` or `test`; a `UsageError` where there is no such split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise UsageError(f"split '{name}' is not one of {', '.join(splits)}")
        if (chosen := splits[name]) is None:
            raise UsageError("there is no validation split: data.validation_size is 0 in this run")
        return chosen


def load_splits(data: DataConfig, objective: ObjectiveConfig, seed: int) -> DataSplits:
    """Load the dataset of a config; `seed` chooses the validation images.

    A `UsageError` if a class, the validation size or `objective.positive` does not fit it.
    """
    dataset = load_dataset(data.dataset, Path(data.dir), mirror=data.mirror or None)
    if data.drawn:
        dataset = _with_drawn(dataset, data.drawn)
    kept = data.classes or tuple(range(len(dataset.class_names)))
    is_binary = objective.kind == "binary"
    if is_binary and objective.positive not in kept:
        raise UsageError(
            f"objective.positive = {objective.positive} is not among the classes {list(kept)}"
        )
    if data.classes:
        dataset = select_classes(dataset, data.classes)
    loss: Objective = Multiclass(objective.label_smoothing)
    if is_binary:
        loss = Binary(objective.positive_weight)
        positive = kept.index(objective.positive)
        name = dataset.class_names[positive]
        is_yes = torch.arange(len(dataset.class_names)) == positive
        dataset = _relabel(dataset, is_yes.long(), (f"not {name}", name))
    train, validation = split_validation(dataset.train, data.validation_size, seed)
    return DataSplits(
        dataset=dataset.name,
        digest=dataset.digest,
        class_names=dataset.class_names,
        objective=loss,
        train=train,
        validation=validation if data.validation_size else None,
        test=dataset.test,
    )


def _with_drawn(dataset: Dataset, num_images: int) -> Dataset:
    """Add digits in the hands of the world to the training images; the digest stays."""
    if dataset.class_names != _DIGITS:
        raise UsageError(
            f"data.drawn = {num_images}, but the images of {dataset.name} are no digits"
        )
    own, drawn = dataset.train, generate(num_images, _DRAWN_SEED, "hands")
    images, labels = torch.cat([own.images, drawn.images]), torch.cat([own.labels, drawn.labels])
    return replace(dataset, train=Split(images, labels))


def load_dataset(name: str, data_dir: Path, *, mirror: str | None = None) -> Dataset:
    """Load a dataset, downloading or drawing it first where necessary.

    The name `auto` is MNIST where it is found or can be downloaded, else, with a warning, the
    synthetic digits; any other name never becomes another dataset. Files are kept in `data_dir` or,
    where it cannot be written, in the user's cache. `mirror` replaces the dataset's own addresses.

    A `DataError` if the data is missing or damaged and cannot be downloaded or kept.
    """
    if name not in (*CLASS_NAMES, "auto"):
        choices = ", ".join(CLASS_NAMES)
        raise UsageError(f"there is no dataset {name!r}; choose from {choices}, or auto")
    if name != "synthetic":
        wanted = "mnist" if name == "auto" else name
        try:
            tensors = DatasetFiles(wanted, data_dir, mirror, fail_fast=name == "auto").load()
            return _dataset(wanted, Split(*tensors[:2]), Split(*tensors[2:]))
        except DownloadError as error:
            if name != "auto":
                raise
            logger.warning(
                f"NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
                f"those. {error} (--dataset mnist makes this an error, --dataset synthetic ends "
                "this warning)"
            )
    return _dataset("synthetic", *load_synthetic(data_dir))


def _dataset(name: str, train: Split, test: Split) -> Dataset:
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        for part in idx_parts(tensor):
            digest.update(part)
    return Dataset(name, train, test, CLASS_NAMES[name], digest.hexdigest())


def select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Keep only the images of some classes, in the same order.

    The first of `classes`, labels of `dataset`, becomes label 0, the next label 1, and so on. A
    `UsageError` if a class is unknown or given twice, or none is given.
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
    new_labels = torch.full((num_classes,), -1, dtype=torch.int64)
    new_labels[list(classes)] = torch.arange(len(classes))
    return _relabel(dataset, new_labels, tuple(dataset.class_names[label] for label in classes))


def _relabel(dataset: Dataset, new_labels: Tensor, class_names: tuple[str, ...]) -> Dataset:
    """Replace each label i by `new_labels[i]`, leaving out the images where that is -1."""

    def relabel(split: Split) -> Split:
        labels = new_labels[split.labels]  # [n]
        return Split(split.images, labels)[labels >= 0]

    train, test = relabel(dataset.train), relabel(dataset.test)
    return replace(dataset, train=train, test=test, class_names=class_names)
