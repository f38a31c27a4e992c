"""Datasets by name or from Python, and the splits and labels of a network's training and test."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
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
from mnist_ce.data.splits import (
    DIGITS,
    Arrays,
    Dataset,
    Split,
    convert,
    split_test,
    split_validation,
    to_pixels,
    to_splits,
)
from mnist_ce.data.synthetic import generate, load_synthetic
from mnist_ce.data.tables import READERS, read_arrays, sort_name
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import as_path
from mnist_ce.system.text import did_you_mean, one_line, sanitize, truncate_middle

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
    training image counts once. With `only_test` the other splits, which may take a while, are left
    as they come from the source. A DataError if data is missing or damaged, a UsageError if a
    class, the validation size, an extra or `objective.positive` does not fit.
    """
    dataset = dataset or load_dataset(data.dataset, Path(data.dir), mirror=data.mirror)
    class_names, new_labels, loss = _classes(dataset, data.classes, objective)
    chosen = data.classes or range(len(dataset.class_names))
    _look_at(dataset, chosen, to_train=to_train)
    train, test = dataset.train, dataset.test.relabel(new_labels)
    validation = dataset.validation and dataset.validation.relabel(new_labels)
    if not only_test:
        if data.num_synthetic:
            if dataset.class_names != DIGITS:
                number = f"data.num_synthetic = {data.num_synthetic}"
                raise UsageError(f"{number}, but the images of {dataset.name} are no digits")
            # Independent of the others, so the validation split may have its part of them.
            synthetic = generate(data.num_synthetic, _SYNTHETIC_SEED, "world")
            train = Split.concatenate(train, synthetic)
        train = train.relabel(new_labels)
        if validation is None:
            train, validation = split_validation(train, data.validation_size, seed)
        mnist = dataset.mnist and dataset.mnist.relabel(new_labels)
        if to_train:
            train = add_extras(train, data, mnist, class_names, seed)
        else:
            train = Split.concatenate(*filter(None, (mnist, train))).distinct()
    splits = (train, validation or None, test)
    return DataSplits(dataset.name, dataset.digest, class_names, loss, *splits, dataset.split_note)


def _classes(
    dataset: Dataset, classes: Sequence[int], objective: ObjectiveConfig
) -> tuple[tuple[str, ...], Tensor, Objective]:
    """Return the names of the classes to learn, the new label of each old one (-1: none), the loss.

    The first of `classes`, labels of `dataset`, becomes label 0; for a yes/no network, 1 is yes.
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


def load_dataset(
    name: str, data_dir: Path, *, mirror: str = "", class_names: Sequence[str] = ()
) -> Dataset:
    """Load a dataset, downloading or drawing it first where necessary.

    The name `auto` is MNIST where it is found or can be downloaded, else, with a warning, the
    synthetic digits; any other name never becomes another dataset. Files are kept in `data_dir` or,
    where it cannot be written, in the user's cache. `mirror` replaces the dataset's own addresses.

    One's own images are `csv:FILE`, `npz:FILE`, `idx:DIR` (see `read_arrays`) or `folder:DIR`
    (`read_folder`), after `mnist+`, which adds MNIST's training images, and any of `CONVERSIONS`.
    `class_names` are the classes that one's own labels name or number, where that is known.
    """
    if own := re.fullmatch(OWN_DATASET, name):
        mnist = load_dataset("mnist", data_dir, mirror=mirror).train if own["mnist"] else None
        place, parts, conversions = _read(own)
        dataset = _from_source(place, parts, class_names, conversions)
        if mnist is not None and dataset.class_names != DIGITS:
            raise UsageError(
                f"mnist+ goes with digits, but {place} has {', '.join(dataset.class_names)}"
            )
        held_out = (dataset.test, dataset.validation)
        return replace(dataset, mnist=mnist and _without(mnist, held_out, "MNIST's"))
    names = [*TORCHVISION_CLASSES, "synthetic", "auto"]
    if name not in names:
        choices = [*names, *(f"{kind}:FILE" for kind in READERS), "folder:DIR"]
        near = did_you_mean(name, choices)
        raise UsageError(f"there is no dataset {name!r}; choose from {', '.join(choices)}{near}")
    if name != "synthetic":
        wanted = "mnist" if name == "auto" else name
        try:
            return DatasetFiles(wanted, data_dir, mirror, fail_fast=name == "auto").load()
        except DownloadError as error:
            if name != "auto":
                raise
            for line in error.args:
                logger.info(line)
            logger.warning(
                "NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
                "those (--dataset mnist: an error; --dataset synthetic: no warning)"
            )
    return Dataset("synthetic", *load_synthetic(data_dir), DIGITS)


def load_images(
    name: str, data_dir: Path, *, mirror: str = ""
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Return the images to predict of a dataset, in their order, with labels where it has some.

    These are its test images, or all of a source without test images; of a CSV file its own, not
    those of the files beside it. Images are uint8 [n, 28, 28], labels int64 [n].
    """
    if own := re.fullmatch(OWN_DATASET, name):
        place, parts, conversions = _read(own)
        its_part = sort_name(Path(own["path"]).name)[1]
        part = next(part for part in (its_part, "test", *parts) if part in parts)
        if (arrays := parts[part]).labels is None:
            return convert(to_pixels(arrays.images, place), conversions), None, DIGITS
        splits, class_names = to_splits({part: arrays}, place)
        return convert(splits[part].images, conversions), splits[part].labels, class_names
    dataset = load_dataset(name, data_dir, mirror=mirror)
    return dataset.test.images, dataset.test.labels, dataset.class_names


def _read(name: re.Match[str]) -> tuple[str, dict[str, Arrays], list[str]]:
    """Return the name of one's own images with an absolute path, what is there, and conversions."""
    kind, path = name["kind"], Path(os.path.abspath(as_path(name["path"])))  # noqa: PTH100 - never fails
    place = f"{name['mnist'] or ''}{name['conversions']}{kind}:{path}"
    conversions = name["conversions"].split("+")[:-1]
    if kind == "folder":
        from mnist_ce.data.folder import read_folder  # imports SciPy, which few runs need

        return place, read_folder(path), conversions
    return place, read_arrays(kind, path), conversions


def _without(train: Split, held_out: Iterable[Split | None], whose: str) -> Split:
    """Leave out images that are also held out, whatever their labels."""
    known = {key for split in held_out if split is not None for key in split.keys()}  # noqa: SIM118
    is_new = torch.tensor([key not in known for key in train.keys()])  # noqa: SIM118
    if num_known := len(train) - int(is_new.sum()):
        numbers = f"{num_known:,} of {whose} {len(train):,} training images"
        logger.warning(f"{numbers} are among the test images, and are left out of training")
    return train[is_new]


def custom_dataset(
    data: object, class_names: Sequence[str] = (), *, num_classes: int = 0, is_test: bool = False
) -> Dataset:
    """Return a dataset made from `(images, labels)`, a torch dataset, or a pair (training, test).

    Images and labels are those of `to_splits`. Of one set alone, a fifth becomes the test split
    (see `split_test`), or with `is_test` all of it. The items of a torch dataset, or of a loader's,
    are (image, label) or dicts of both. `class_names` say what each label means; without them the
    `classes` of a torchvision dataset do, or else numbers, at least `num_classes`. A TypeError if
    `data` is neither of these, a DataError if shapes or values are wrong.
    """
    sets = [data]
    if isinstance(data, (tuple, list)) and all(isinstance(part, (tuple, *SETS)) for part in data):
        sets = list(data)
    if not 1 <= len(sets) <= 2:
        raise TypeError("data must be one set, or a training and a test set")
    parts = dict(zip(("train", "test"), map(_arrays_of, sets), strict=False))
    classes = class_names or getattr(sets[0], "classes", None) or ()
    names = tuple(sanitize(str(name)).partition(" - ")[0] for name in classes)
    dataset = _from_source(CUSTOM, parts, names, num_classes=num_classes)
    return dataset.as_test() if is_test else dataset


def _arrays_of(data: object) -> Arrays:
    """Return images and labels of a pair of them, or of a dataset.

    Only its `__getitem__` says what its items are, but for torchvision's own without transforms.
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return Arrays(data[0], data[1])
    if not isinstance(data, SETS):
        raise TypeError(
            "data must be (images, labels), a torch dataset, or a pair of these for training and "
            f"testing, not {type(data).__name__}"
        )
    method: Any = getattr(type(data), "__getitem__", None)
    is_raw = getattr(data, "transform", None) is getattr(data, "target_transform", None) is None
    if is_raw and f"{method.__module__}.{method.__qualname__}" == TORCHVISION_METHOD:
        return Arrays(getattr(data, "data", None), getattr(data, "targets", None))
    source: Any = data
    items = [source[i] for i in range(len(source))] if hasattr(data, "__len__") else [*source]
    try:
        pairs = [
            [item[next(filter(item.__contains__, keys))] for keys in ITEM_KEYS]
            if isinstance(item, Mapping)
            else [*item]
            for item in items
        ]
        images = np.stack([np.asarray(image) for image, _ in pairs])
        return Arrays(images, [label for _, label in pairs])
    except (ValueError, TypeError, StopIteration) as error:
        wanted = "an image, all of one size, and its label: (image, label) or a dict of both"
        raise DataError(f"data: an item must be {wanted} ({one_line(error)})") from None


def _from_source(
    name: str,
    parts: Mapping[str, Arrays],
    class_names: Sequence[str] = (),
    conversions: Sequence[str] = (),
    num_classes: int | None = None,
) -> Dataset:
    """Return what a source has as a dataset: for the classes see `to_splits`."""
    labelled = {part: arrays for part, arrays in parts.items() if arrays.labels is not None}
    if not labelled or ("train" in parts and "train" not in labelled):
        raise DataError(f"{name} has images without labels; mnist-ce predict needs none")
    for part in parts.keys() - labelled.keys():
        logger.info(f"{name}: the {part} images have no labels, and are left aside")
    source = name if num_classes is None else "data"
    splits, names = to_splits(labelled, source, class_names, num_classes)
    splits = {p: Split(convert(s.images, conversions), s.labels) for p, s in splits.items()}
    train = splits.pop("train", None) or splits.pop(next(iter(splits)))
    test, validation = splits.get("test"), splits.get("validation")
    if test is None:
        test, validation = validation, None
    if test is None:
        whole, (train, test) = train, split_test(train)
        note = f"{len(test):,} of {len(whole):,} images, a fifth of each class, are for testing"
        return Dataset(name, train, test, names, split_note=note, whole=whole)
    if num_classes is None:
        validation = validation and _without(validation, [test], f"{name}'s")
        train = _without(train, [test, validation], f"{name}'s")
    return Dataset(name, train, test, names, validation=validation or None)


@functools.cache  # compared networks read the same data
def log_once(level: int, text: str) -> None:
    logger.log(level, text)


def _look_at(dataset: Dataset, classes: Sequence[int], *, to_train: bool) -> None:
    """Log what a dataset holds of some classes, and warn of what cannot be right, or refuse it."""
    names = [dataset.class_names[label] for label in classes]
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if dataset.train is dataset.test:
        del parts["training"]
    counts = {
        part: split.labels.bincount(minlength=len(dataset.class_names))[[*classes]]
        for part, split in parts.items()
        if split is not None
    }
    total = torch.stack([*counts.values()]).sum(dim=0)  # of each class
    num_images, present = int(total.sum()), total[total > 0].tolist() or [0]
    each = " to ".join(f"{number:,}" for number in sorted({min(present), max(present)}))
    sizes = ", ".join(f"{int(count.sum()):,} {part}" for part, count in counts.items())
    number = f"{len(present)} class{'es' * (len(present) > 1)}, {each} images each"
    log_once(logging.INFO, f"{dataset.name}: {number}; {dataset.split_note or sizes}")
    problems = []
    if len(present) == 1:
        problems.append(f"all {num_images:,} images are of one class, {names[int(total.argmax())]}")
    elif len(present) > max(10, num_images / 2):
        problems.append(f"{num_images:,} images have {len(present):,} labels, as if numbered")
    if problems and to_train:
        raise DataError(f"{dataset.name}: {problems[0]}: from such labels nothing can be learned")
    others = [name for name in names if not name.isdecimal()]
    if others and {*names} & {*DIGITS}:
        shown = truncate_middle(", ".join(others), 60)
        problems.append(f"some classes are digits, and some not: {shown}")
    for part, count in counts.items():
        if part != "validation" and not count.sum():
            problem = f"{dataset.name} has no {part} image"
            if len(names) < len(dataset.class_names):
                raise UsageError(f"data.classes: {problem} of {', '.join(names)}")
            raise DataError(f"{problem}: give at least three of a class")
        if missing := [
            name for name, here, n in zip(names, count, total, strict=True) if n > here == 0
        ]:
            problems.append(f"no {part} image is of {truncate_middle(', '.join(missing), 60)}")
    for problem in problems:
        log_once(logging.WARNING, f"{dataset.name}: {problem}")
