"""Datasets by name or from Python, and the splits and labels of a network's training and test."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mnist_ce.config import OWN_DATASET, DataConfig, ObjectiveConfig
from mnist_ce.data.extra import add_extras
from mnist_ce.data.files import TORCHVISION_CLASSES, DatasetFiles, DownloadError
from mnist_ce.data.splits import DIGITS, Dataset, Split, split_test, split_validation
from mnist_ce.data.synthetic import generate, load_synthetic
from mnist_ce.data.tables import read_csv, read_npz
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.text import did_you_mean, one_line, sanitize

logger = logging.getLogger(__name__)

CUSTOM = "custom"
"""The name of a dataset that was given from Python."""
SETS = (TorchDataset, DataLoader)
TORCHVISION_METHOD = "torchvision.datasets.mnist.MNIST.__getitem__"
ITEM_KEYS = (("image", "img", "pixel_values", "x"), ("label", "labels", "target", "y"))  # of a dict
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
        return 1 if isinstance(self.objective, Binary) else len(self.class_names)

    def split(self, name: str) -> Split:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise UsageError(f"split '{name}' is not one of {', '.join(splits)}")
        if (chosen := splits[name]) is None:
            raise UsageError("there is no validation split: data.validation_size is 0 in this run")
        return chosen


def load_splits(
    data: DataConfig,
    objective: ObjectiveConfig,
    seed: int,
    dataset: Dataset | None = None,
    *,
    to_train: bool = False,
    only_test: bool = False,
) -> DataSplits:
    """Load the dataset of a config, unless one is given, and split it: the one way of all data.

    Source → (train, test) → classes → validation → extra training images. `seed` chooses the
    validation images and the extra ones, which are added `to_train` alone: for an evaluation each
    training image counts once, since copies of it say nothing new of the network. With `only_test`
    the other splits, which may take a while, are left as they come from the source.

    Raises:
        DataError: If the data is missing or damaged.
        UsageError: If a class, the validation size, an extra or `objective.positive` does not fit,
            or the classes leave no image to train or to test on.
    """
    dataset = dataset or load_dataset(data.dataset, Path(data.dir), mirror=data.mirror)
    class_names, new_labels, loss = _classes(dataset, data.classes, objective)
    train, test = dataset.train, dataset.test.relabel(new_labels)
    _check_not_empty(test, "test", dataset, data.classes)
    validation = None
    if not only_test:
        if data.num_synthetic:
            if dataset.class_names != DIGITS:
                number = f"data.num_synthetic = {data.num_synthetic}"
                raise UsageError(f"{number}, but the images of {dataset.name} are no digits")
            # Independent of the others, so the validation split may have its part of them.
            synthetic = generate(data.num_synthetic, _SYNTHETIC_SEED, "world")
            train = Split.concatenate(train, synthetic)
        train = train.relabel(new_labels)
        _check_not_empty(train, "training", dataset, data.classes)
        train, validation = split_validation(train, data.validation_size, seed)
        mnist = dataset.mnist and dataset.mnist.relabel(new_labels)
        if to_train:
            train = add_extras(train, data, mnist, class_names, seed)
        else:
            train = Split.concatenate(*filter(None, (mnist, train))).distinct()
    splits = (train, validation or None, test)
    return DataSplits(dataset.name, dataset.digest, class_names, loss, *splits, dataset.split_note)


def _check_not_empty(split: Split, part: str, dataset: Dataset, classes: Sequence[int]) -> None:
    if not len(split):
        train, test = (s.labels.tolist() for s in (dataset.train, dataset.test))
        numbers = [f"{train.count(n)} training and {test.count(n)} test images" for n in classes]
        names = (dataset.class_names[n] for n in classes)
        counts = map(" has ".join, zip(names, numbers, strict=True))
        problem = f"data.classes leave no {part} image of {dataset.name}"
        raise UsageError(f"{problem}: {'; '.join(counts)}")


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
        highest = f"its classes are 0 to {num_classes - 1}"
        raise UsageError(f"data.classes: {dataset.name} has no class {max(chosen)}; {highest}")
    new_labels = torch.full((num_classes,), -1, dtype=torch.int64)
    if objective.kind == "binary":
        if objective.positive not in chosen:
            positive = f"objective.positive = {objective.positive}"
            raise UsageError(f"{positive} is not among the classes {chosen}")
        name = dataset.class_names[objective.positive]
        new_labels[chosen] = 0
        new_labels[objective.positive] = 1
        return (f"not {name}", name), new_labels, Binary(objective.positive_weight)
    new_labels[chosen] = torch.arange(len(chosen))
    names = tuple(dataset.class_names[label] for label in chosen)
    return names, new_labels, Multiclass(objective.label_smoothing)


def short_name(dataset: str) -> str:
    """Return a dataset's name for the name of a run: of a path, only the last part."""
    kind, colon, path = dataset.partition(":")
    plus = "mnist+" if kind.startswith("mnist+") else ""
    stem = re.sub(r"[^\w-]+", "-", Path(path).stem)[:40].strip("-") if colon else kind
    return plus + (stem or "own")


def load_dataset(name: str, data_dir: Path, *, mirror: str = "") -> Dataset:
    """Load a dataset, downloading or drawing it first where necessary.

    The name `auto` is MNIST where it is found or can be downloaded, else, with a warning, the
    synthetic digits; any other name never becomes another dataset. Files are kept in `data_dir` or,
    where it cannot be written, in the user's cache. `mirror` replaces the dataset's own addresses.

    One's own images are `csv:FILE` (see `read_csv`), `npz:FILE` (`read_npz`) or `folder:DIR`
    (`read_folder`); with `mnist+` before it, MNIST's training images join the training images.
    """
    if own := re.fullmatch(OWN_DATASET, name):
        mnist = load_dataset("mnist", data_dir, mirror=mirror).train if own[1] else None
        return _load_own(own, mnist)
    names = [*TORCHVISION_CLASSES, "synthetic", "auto"]
    if name not in names:
        choices = [*names, "csv:FILE", "npz:FILE", "folder:DIR"]
        near = did_you_mean(name, choices)
        raise UsageError(f"there is no dataset {name!r}; choose from {', '.join(choices)}{near}")
    if name != "synthetic":
        wanted = "mnist" if name == "auto" else name
        try:
            return DatasetFiles(wanted, data_dir, mirror, fail_fast=name == "auto").load()
        except DownloadError as error:
            if name != "auto":
                raise
            logger.warning(
                f"NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
                f"those. {error} (--dataset mnist: an error; --dataset synthetic: no warning)"
            )
    return Dataset("synthetic", *load_synthetic(data_dir), DIGITS)


def _load_own(name: re.Match[str], mnist: Split | None) -> Dataset:
    kind = name[2]
    path = Path(os.path.abspath(os.path.expanduser(name[3])))  # noqa: PTH100, PTH111 - never fails
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
    dataset = _own_dataset(f"{name[1] or ''}{kind}:{path}", train, test, class_names)
    mnist = mnist and _without_test_images(mnist, dataset.test, "MNIST's")
    return replace(dataset, mnist=mnist)


def _without_test_images(train: Split, test: Split, whose: str) -> Split:
    """Leave out training images that are test images too, whatever their labels."""
    known = {*test.keys()}
    is_new = torch.tensor([key not in known for key in train.keys()])  # noqa: SIM118
    if num_known := len(train) - int(is_new.sum()):
        numbers = f"{num_known:,} of {whose} {len(train):,} training images"
        logger.warning(f"{numbers} are among the test images, and are left out of training")
    return train[is_new]


def custom_dataset(
    data: object, class_names: Sequence[str] = (), *, num_classes: int = 0, is_test: bool = False
) -> Dataset:
    """Return a dataset made from `(images, labels)`, a torch dataset, or a pair (training, test).

    Images and labels are those of `Split.from_arrays`. Of one set alone, a fifth becomes the test
    split (see `split_test`), or with `is_test` all of it. The items of a torch dataset, or of a
    loader's, are (image, label) or dicts of both; a transform is applied once. `class_names` say
    what each label means; without them these are the `classes` of a torchvision dataset, or else
    numbers, at least `num_classes`.

    Raises:
        TypeError: If `data` is neither of these.
        DataError: If shapes or values are wrong.
    """
    is_pair = isinstance(data, (tuple, list)) and all(
        isinstance(part, (tuple, *SETS)) for part in data
    )
    sets = list(data) if is_pair else [data]  # type: ignore[call-overload]
    if not 1 <= len(sets) <= 2:
        raise TypeError("data must be one set, or a training and a test set")
    splits = [_custom_split(part) for part in sets]
    test = splits[-1] if is_pair or is_test else None
    highest = max(int(split.labels.max()) for split in splits)
    numbers = range(max(highest + 1, num_classes))
    classes = getattr(sets[0], "classes", None) or map(str, numbers)
    names = tuple(class_names or (sanitize(str(name)).partition(" - ")[0] for name in classes))
    return _own_dataset(CUSTOM, splits[0], test, names)


def _custom_split(data: object) -> Split:
    return Split.from_arrays(*_arrays_of(data), "data")


def _arrays_of(data: object) -> tuple[object, object]:
    """Return images and labels of a pair of them, or of a dataset.

    What a dataset's items are only its `__getitem__` says. So they are asked for, one by one, but
    for torchvision's own class without transforms.
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1]
    if not isinstance(data, SETS):
        raise TypeError(
            "data must be (images, labels), a torch dataset, or a pair of these for training and "
            f"testing, not {type(data).__name__}"
        )
    method: Any = getattr(type(data), "__getitem__", None)
    is_raw = getattr(data, "transform", None) is getattr(data, "target_transform", None) is None
    if is_raw and f"{method.__module__}.{method.__qualname__}" == TORCHVISION_METHOD:
        return getattr(data, "data", None), getattr(data, "targets", None)
    source: Any = data
    items = [source[i] for i in range(len(source))] if hasattr(data, "__len__") else [*source]
    try:
        pairs = [
            [item[next(filter(item.__contains__, keys))] for keys in ITEM_KEYS]
            if isinstance(item, Mapping)
            else [*item]
            for item in items
        ]
        return np.stack([np.asarray(image) for image, _ in pairs]), [label for _, label in pairs]
    except (ValueError, TypeError, StopIteration) as error:
        wanted = "an image, all of one size, and its label: (image, label) or a dict of both"
        raise DataError(f"data: an item must be {wanted} ({one_line(error)})") from None


def _own_dataset(
    name: str, train: Split, test: Split | None, class_names: tuple[str, ...]
) -> Dataset:
    split_note = None
    if test is None:
        num_images, (train, test) = len(train), split_test(train)
        shares = f"{len(test):,} of {num_images:,} images"
        split_note = f"{shares}, a fifth of each class, are for testing"
        logger.info(f"{name}: {split_note}")
    if not len(train) or not len(test):
        raise DataError(f"{name} has too few images: give at least three of a class")
    highest = max(int(split.labels.max()) for split in (train, test))
    if highest >= len(class_names):
        classes = f"its classes are 0 to {len(class_names) - 1}"
        raise DataError(f"{name} has the label {highest}, but {classes}")
    return Dataset(name, train, test, class_names, split_note=split_note)


def load_images(
    name: str, data_dir: Path, *, mirror: str = ""
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    dataset = load_dataset(name, data_dir, mirror=mirror)
    return dataset.test.images, dataset.test.labels, dataset.class_names
