"""Datasets by name, and the splits and labels that a network is trained and tested on."""

from __future__ import annotations

import hashlib
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
from mnist_ce.data.files import DatasetFiles
from mnist_ce.data.idx import idx_parts
from mnist_ce.data.registry import CLASS_NAMES, DIGITS
from mnist_ce.data.splits import Split, split_test, split_validation
from mnist_ce.data.synthetic.generate import generate, load_synthetic
from mnist_ce.data.tables import read_csv, read_npz
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.text import did_you_mean

logger = logging.getLogger(__name__)

_DRAWN_SEED = 3  # another than those of the synthetic set
OWN_SHARE = 0.25  # of the training images of `mnist+…` are one's own; docs/own-data.md compares


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the meaning of label 0, 1, ….

    `digest` is the SHA-256 (hex) of the unpacked IDX files, training images, training labels,
    test images, test labels and what `rehearsal` has, of all classes.
    """

    name: str  # never `auto`; a path in it is absolute
    train: Split
    test: Split  # for reporting, never for choosing anything
    class_names: tuple[str, ...]
    digest: str
    rehearsal: Split | None = None  # other images to train on, never for validation
    split_note: str | None = None  # how the test images were chosen, if not by the dataset


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
        """Return `train`, `validation` or `test`; a `UsageError` where there is no such split."""
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
    given: Dataset | None = None,
) -> DataSplits:
    """Load the dataset of a config, or take the one given; `seed` chooses the validation images.

    A `UsageError` if a class, the validation size or `objective.positive` does not fit the dataset.
    """
    dataset = given or load_dataset(data.dataset, Path(data.dir), mirror=data.mirror or None)
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
    if dataset.rehearsal is not None:
        train = _mix(train, dataset.rehearsal)
    return DataSplits(
        dataset=dataset.name,
        digest=dataset.digest,
        class_names=dataset.class_names,
        objective=loss,
        train=train,
        validation=validation if data.validation_size else None,
        test=dataset.test,
        split_note=dataset.split_note,
    )


def _with_drawn(dataset: Dataset, num_images: int) -> Dataset:
    """Add digits in the hands of the world to the training images; the digest stays."""
    if dataset.class_names != DIGITS:
        raise UsageError(
            f"data.drawn = {num_images}, but the images of {dataset.name} are no digits"
        )
    own, drawn = dataset.train, generate(num_images, _DRAWN_SEED, "hands")
    images, labels = torch.cat([own.images, drawn.images]), torch.cat([own.labels, drawn.labels])
    return replace(dataset, train=Split(images, labels))


def _mix(own: Split, others: Split) -> Split:
    """Return all images, one's own repeated until they are `OWN_SHARE` of them."""
    repeats = max(1, round(OWN_SHARE / (1 - OWN_SHARE) * len(others) / max(1, len(own))))
    images = torch.cat([others.images, own.images.repeat(repeats, 1, 1)])
    return Split(images, torch.cat([others.labels, own.labels.repeat(repeats)]))


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
    (`read_folder`); with `mnist+` before it, MNIST's training images become the rehearsal.

    A `DataError` if the data is missing or damaged and cannot be downloaded or kept.
    """
    if own := re.fullmatch(OWN_DATASET, name):
        rehearsal = load_dataset("mnist", data_dir, mirror=mirror).train if own[1] else None
        return _load_own(own, rehearsal)
    if name not in (*CLASS_NAMES, "auto"):
        choices = [*CLASS_NAMES, "auto", "csv:FILE", "npz:FILE", "folder:DIR"]
        raise UsageError(
            f"there is no dataset {name!r}; choose from {', '.join(choices)}"
            f"{did_you_mean(name, choices)}"
        )
    if name != "synthetic":
        wanted = "mnist" if name == "auto" else name
        try:
            tensors = DatasetFiles(wanted, data_dir, mirror, fail_fast=name == "auto").load()
            return make_dataset(
                wanted, Split(*tensors[:2]), Split(*tensors[2:]), CLASS_NAMES[wanted]
            )
        except DownloadError as error:
            if name != "auto":
                raise
            logger.warning(
                f"NOT MNIST: using the built-in SYNTHETIC digits instead, so every result is about "
                f"those. {error} (--dataset mnist makes this an error, --dataset synthetic ends "
                "this warning)"
            )
    return make_dataset("synthetic", *load_synthetic(data_dir), CLASS_NAMES["synthetic"])


def _load_own(name: re.Match[str], rehearsal: Split | None) -> Dataset:
    kind = name[2]
    path = Path(os.path.abspath(Path(name[3]).expanduser()))  # noqa: PTH100 - also without ".."
    class_names, split_note = DIGITS, None
    if kind == "folder":
        from mnist_ce.data.folder import read_folder  # imports SciPy, which few runs need

        train, test, class_names = read_folder(path)
    else:
        train, test = (read_csv if kind == "csv" else read_npz)(path)
    if test is None:
        num_images = len(train)
        train, test = split_test(train)
        split_note = (
            f"{len(test):,} of {num_images:,} images, a fifth of each class, are for testing"
        )
        logger.info(f"{path}: {split_note}")
    if not len(train) or not len(test):
        raise DataError(f"{path} has too few images: give at least three of a class")
    if rehearsal is not None and class_names != DIGITS:
        raise UsageError(f"mnist+ goes with digits, but {path} has {', '.join(class_names)}")
    full_name = f"{name[1] or ''}{kind}:{path}"
    dataset = make_dataset(full_name, train, test, class_names, rehearsal)
    return replace(dataset, split_note=split_note)


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    class_names: tuple[str, ...],
    rehearsal: Split | None = None,
) -> Dataset:
    """Return a dataset with the digest of its images and labels; see `Dataset`."""
    digest = hashlib.sha256()
    for split in (train, test) if rehearsal is None else (train, test, rehearsal):
        for part in (*idx_parts(split.images), *idx_parts(split.labels)):
            digest.update(part)
    return Dataset(name, train, test, class_names, digest.hexdigest(), rehearsal)


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

    others = None if dataset.rehearsal is None else relabel(dataset.rehearsal)
    train, test = relabel(dataset.train), relabel(dataset.test)
    return replace(dataset, train=train, test=test, class_names=class_names, rehearsal=others)
