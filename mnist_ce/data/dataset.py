"""Datasets by name, and the splits and labels that a network is trained and tested on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mnist_ce.config import OWN_DATASET, DataConfig, ObjectiveConfig
from mnist_ce.data.download import DownloadError
from mnist_ce.data.extra import extra_steps
from mnist_ce.data.files import DatasetFiles
from mnist_ce.data.registry import CLASS_NAMES, DIGITS
from mnist_ce.data.splits import Dataset, Split, split_test, split_validation
from mnist_ce.data.synthetic.generate import generate, load_synthetic
from mnist_ce.data.tables import read_csv, read_npz
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.text import did_you_mean

logger = logging.getLogger(__name__)

_SYNTHETIC_SEED = 3  # another than those of the synthetic dataset


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
    split_note: str | None = None  # as in `Dataset`

    @property
    def num_outputs(self) -> int:
        """Logits per image."""
        return 1 if isinstance(self.objective, Binary) else len(self.class_names)

    def split(self, name: str) -> Split:
        """Return `train`, `validation` or `test` to evaluate on; a `UsageError` if there is none.

        An image that training repeats counts once: its copies say nothing new of the network.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise UsageError(f"split '{name}' is not one of {', '.join(splits)}")
        if (chosen := splits[name]) is None:
            raise UsageError("there is no validation split: data.validation_size is 0 in this run")
        return chosen.distinct() if name == "train" else chosen


def load_splits(
    data: DataConfig,
    objective: ObjectiveConfig,
    seed: int,
    dataset: Dataset | None = None,
    *,
    only_test: bool = False,
) -> DataSplits:
    """Load the dataset of a config, unless one is given, and split it: the one way of all data.

    Source → (train, test) → classes → validation → extra training images. `seed` chooses the
    validation images and the extra ones. With `only_test` the other splits, which may take a
    while, are left as they come from the source.

    Raises:
        DataError: If the data is missing or damaged.
        UsageError: If a class, the validation size, an extra or `objective.positive` does not fit.
    """
    dataset = dataset or load_dataset(data.dataset, Path(data.dir), mirror=data.mirror or None)
    class_names, new_labels, loss = _classes(dataset, data.classes, objective)
    train, test = dataset.train, dataset.test.relabel(new_labels)
    validation = None
    if not only_test:
        if data.num_synthetic:
            # Independent of the others, so the validation split may have its part of them.
            train = Split.concatenate(train, _synthetic(dataset, data.num_synthetic))
        train, validation = split_validation(train.relabel(new_labels), data.validation_size, seed)
        mnist = dataset.mnist and dataset.mnist.relabel(new_labels)
        for add in extra_steps(data, mnist, class_names, seed):
            train = add(train)
    return DataSplits(
        dataset=dataset.name,
        digest=dataset.digest,
        class_names=class_names,
        objective=loss,
        train=train,
        validation=validation or None,
        test=test,
        split_note=dataset.split_note,
    )


def _classes(
    dataset: Dataset, classes: Sequence[int], objective: ObjectiveConfig
) -> tuple[tuple[str, ...], Tensor, Objective]:
    """Return the names of the classes to learn, the new label of each old one and the loss.

    The first of `classes`, labels of `dataset`, becomes label 0, the next label 1, and so on; -1
    are those left out. For a yes/no network, label 0 is no and 1 is yes.
    """
    num_classes = len(dataset.class_names)
    chosen = list(classes) or list(range(num_classes))
    if max(chosen) >= num_classes:
        raise UsageError(
            f"data.classes: {dataset.name} has no class {max(chosen)}; its classes are 0 to "
            f"{num_classes - 1}"
        )
    new_labels = torch.full((num_classes,), -1, dtype=torch.int64)
    if objective.kind == "binary":
        if objective.positive not in chosen:
            raise UsageError(
                f"objective.positive = {objective.positive} is not among the classes {chosen}"
            )
        name = dataset.class_names[objective.positive]
        new_labels[chosen] = 0
        new_labels[objective.positive] = 1
        return (f"not {name}", name), new_labels, Binary(objective.positive_weight)
    new_labels[chosen] = torch.arange(len(chosen))
    names = tuple(dataset.class_names[label] for label in chosen)
    return names, new_labels, Multiclass(objective.label_smoothing)


def _synthetic(dataset: Dataset, num_images: int) -> Split:
    if dataset.class_names != DIGITS:
        raise UsageError(
            f"data.num_synthetic = {num_images}, but the images of {dataset.name} are no digits"
        )
    return generate(num_images, _SYNTHETIC_SEED, "world")


def short_name(dataset: str) -> str:
    """Return a dataset's name for the name of a run: of a path, only the last part."""
    kind, colon, path = dataset.partition(":")
    plus = "mnist+" if kind.startswith("mnist+") else ""
    stem = re.sub(r"[^\w-]+", "-", Path(path).stem)[:40].strip("-") if colon else kind
    return plus + (stem or "own")


def load_dataset(name: str, data_dir: Path, *, mirror: str | None = None) -> Dataset:
    """Load a dataset, downloading or drawing it first where necessary.

    The name `auto` is MNIST where it is found or can be downloaded, else, with a warning, the
    synthetic digits; any other name never becomes another dataset. Files are kept in `data_dir` or,
    where it cannot be written, in the user's cache. `mirror` replaces the dataset's own addresses.

    One's own images are `csv:FILE` (see `read_csv`), `npz:FILE` (`read_npz`) or `folder:DIR`
    (`read_folder`); with `mnist+` before it, MNIST's training images join the training images.

    A `DataError` if the data is missing or damaged and cannot be downloaded or kept.
    """
    if own := re.fullmatch(OWN_DATASET, name):
        mnist = load_dataset("mnist", data_dir, mirror=mirror).train if own[1] else None
        return _load_own(own, mnist)
    if name not in (*CLASS_NAMES, "auto"):
        choices = [*CLASS_NAMES, "auto", "csv:FILE", "npz:FILE", "folder:DIR"]
        raise UsageError(
            f"there is no dataset {name!r}; choose from {', '.join(choices)}"
            f"{did_you_mean(name, choices)}"
        )
    if name != "synthetic":
        wanted = "mnist" if name == "auto" else name
        try:
            return DatasetFiles(wanted, data_dir, mirror, fail_fast=name == "auto").load()
        except DownloadError as error:
            if name != "auto":
                raise
            logger.warning(
                f"NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
                f"those. {error} (--dataset mnist makes this an error, --dataset synthetic ends "
                "this warning)"
            )
    return Dataset("synthetic", *load_synthetic(data_dir), CLASS_NAMES["synthetic"])


def _load_own(name: re.Match[str], mnist: Split | None) -> Dataset:
    kind = name[2]
    path = Path(os.path.abspath(Path(name[3]).expanduser()))  # noqa: PTH100 - also without ".."
    class_names = DIGITS
    if kind == "folder":
        from mnist_ce.data.folder import read_folder  # imports SciPy, which few runs need

        train, test, class_names = read_folder(path)
    else:
        train, test = (read_csv if kind == "csv" else read_npz)(path)
    if mnist is not None and class_names != DIGITS:
        raise UsageError(f"mnist+ goes with digits, but {path} has {', '.join(class_names)}")
    if test is not None:
        train = _without_test_images(train, test, f"{path}'s")
    dataset = own_dataset(f"{name[1] or ''}{kind}:{path}", train, test, class_names)
    mnist = mnist and _without_test_images(mnist, dataset.test, "MNIST's")
    return replace(dataset, mnist=mnist)


def _without_test_images(train: Split, test: Split, whose: str) -> Split:
    """Leave out training images that are test images too, whatever their labels."""
    known = {image.tobytes() for image in test.images.numpy()}
    is_new = torch.tensor([image.tobytes() not in known for image in train.images.numpy()])
    if num_known := len(train) - int(is_new.sum()):
        logger.warning(
            f"{num_known:,} of {whose} {len(train):,} training images are among the test images, "
            "and are left out of training"
        )
    return train[is_new]


def own_dataset(
    name: str, train: Split, test: Split | None, class_names: tuple[str, ...]
) -> Dataset:
    """Return a dataset of one's own; without a test split, a fifth of each class becomes one.

    A `DataError` if there are too few images, or a label without a class.
    """
    split_note = None
    if test is None:
        num_images = len(train)
        train, test = split_test(train)
        split_note = (
            f"{len(test):,} of {num_images:,} images, a fifth of each class, are for testing"
        )
        logger.info(f"{name}: {split_note}")
    if not len(train) or not len(test):
        raise DataError(f"{name} has too few images: give at least three of a class")
    highest = max(int(split.labels.max()) for split in (train, test))
    if highest >= len(class_names):
        raise DataError(
            f"{name} has the label {highest}, but its classes are 0 to {len(class_names) - 1}"
        )
    return Dataset(name, train, test, class_names, split_note=split_note)
