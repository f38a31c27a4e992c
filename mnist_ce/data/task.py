"""What a network is to learn: labelled images, what their labels mean, and the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import UsageError

if TYPE_CHECKING:
    from mnist_ce.data.splits import Dataset, Split

__all__ = ["DataSplits", "binary_class_names", "load_splits", "objective_of"]


@dataclass(frozen=True)
class DataSplits:
    """Images split for training, validation and testing, with what to do with them.

    Args:
        dataset: The dataset's name, `mnist` for example; never `auto`.
        digest: The dataset's digest.
        class_names: What each label means; for a yes/no network, label 0 is no and 1 is yes.
        objective: What is minimised.
        num_outputs: Logits per image.
        train: The images to learn from.
        validation: The images to choose by; None where none are held out.
        test: The images to report on.
    """

    dataset: str
    digest: str
    class_names: tuple[str, ...]
    objective: Objective
    num_outputs: int
    train: Split
    validation: Split | None
    test: Split

    def split(self, name: str) -> Split:
        """Return a split by name: `train`, `validation` or `test`.

        Raises:
            UsageError: If the split is not there.
        """
        if name == "validation" and self.validation is None:
            raise UsageError("there is no validation split: data.validation_size is 0 in this run")
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        chosen = splits.get(name)
        if chosen is None:
            raise UsageError(f"split '{name}' is not one of train, validation, test")
        return chosen


def objective_of(
    kind: str, label_smoothing: float = 0.0, positive_weight: float = 1.0
) -> Objective:
    """Return the objective of a kind, `multiclass` or `binary`."""
    return Binary(positive_weight) if kind == "binary" else Multiclass(label_smoothing)


def binary_class_names(class_name: str) -> tuple[str, str]:
    """Return what the labels of a yes/no network mean."""
    return (f"not {class_name}", class_name)


def load_splits(
    dataset: str,
    data_dir: Path,
    *,
    mirror: str | None = None,
    classes: Sequence[int] = (),
    validation_size: int = 0,
    seed: int = 0,
    kind: str = "multiclass",
    positive: int = 7,
    label_smoothing: float = 0.0,
    positive_weight: float = 1.0,
) -> DataSplits:
    """Load a dataset and make of it what the config's data and objective sections say.

    Args:
        dataset: See `data.load_dataset`, as are `data_dir` and `mirror`.
        data_dir: The folder of the datasets.
        mirror: The only address to download from.
        classes: The classes to keep; empty: all.
        validation_size: Training images to hold out.
        seed: Makes the validation split.
        kind: `multiclass` or `binary`.
        positive: The class, as the dataset numbers it, that counts as yes.
        label_smoothing: See `Multiclass`.
        positive_weight: See `Binary`.

    Raises:
        DataError: If the data cannot be had.
        UsageError: If a class, the validation size or `positive` does not fit the dataset.
    """
    from mnist_ce.data.dataset import load_dataset
    from mnist_ce.data.splits import select_classes, split_validation

    data = load_dataset(dataset, data_dir, mirror=mirror)
    kept = tuple(classes) or tuple(range(len(data.class_names)))
    if kind == "binary" and positive not in kept:
        raise UsageError(f"objective.positive = {positive} is not among the classes {list(kept)}")
    if classes:
        data = select_classes(data, classes)
    num_outputs = len(data.class_names)
    if kind == "binary":
        data, num_outputs = _yes_or_no(data, kept.index(positive)), 1
    train, validation = split_validation(data.train, validation_size, seed)
    return DataSplits(
        dataset=data.name,
        digest=data.digest,
        class_names=data.class_names,
        objective=objective_of(kind, label_smoothing, positive_weight),
        num_outputs=num_outputs,
        train=train,
        validation=validation if validation_size else None,
        test=data.test,
    )


def _yes_or_no(data: Dataset, positive: int) -> Dataset:
    """Relabel a dataset: 1 where the label is `positive`, else 0."""

    def relabel(split: Split) -> Split:
        return replace(split, labels=(split.labels == positive).long())

    return replace(
        data,
        train=relabel(data.train),
        test=relabel(data.test),
        class_names=binary_class_names(data.class_names[positive]),
    )
