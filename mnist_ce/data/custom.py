"""Datasets from arrays, tensors and torch datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from mnist_ce.data.dataset import own_dataset
from mnist_ce.data.splits import Dataset, Split

CUSTOM = "custom"
"""The name of a dataset that was given from Python."""


def custom_dataset(
    data: object, class_names: Sequence[str] = (), *, is_test: bool = False
) -> Dataset:
    """Return a dataset made from `(images, labels)`, a torch dataset, or a pair (training, test).

    Images and labels are those of `Split.from_arrays`. Of one set alone, a fifth becomes the test
    split (see `split_test`). A torch dataset yields (image, label); its transform is applied once.

    Args:
        data: See above.
        class_names: What each label means; empty: the `classes` of a torchvision dataset, else the
            numbers.
        is_test: Whether one set alone is the test split, whole.

    Raises:
        TypeError: If `data` is neither of these.
        DataError: If shapes or values are wrong.
    """
    is_pair = isinstance(data, (tuple, list)) and all(
        isinstance(part, (tuple, TorchDataset)) for part in data
    )
    sets = list(data) if is_pair else [data]  # type: ignore[call-overload]
    if not 1 <= len(sets) <= 2:
        raise TypeError("data must be one set, or a training and a test set")
    splits = [_split(part) for part in sets]
    test = splits[-1] if is_pair or is_test else None
    highest = max(int(split.labels.max()) for split in splits)
    classes = getattr(sets[0], "classes", None) or map(str, range(highest + 1))
    names = tuple(class_names) or tuple(str(name).partition(" - ")[0] for name in classes)
    return own_dataset(CUSTOM, splits[0], test, names)


def _split(data: object) -> Split:
    if isinstance(data, TorchDataset):
        is_raw = getattr(data, "transform", None) is getattr(data, "target_transform", None) is None
        if is_raw and hasattr(data, "data") and hasattr(data, "targets"):
            return Split.from_arrays(data.data, data.targets, "data")
        items = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
        images = np.stack([np.asarray(image) for image, _ in items])
        return Split.from_arrays(images, [int(label) for _, label in items], "data")
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            "data must be (images, labels), a torch dataset, or a pair of these for training and "
            f"testing, not {type(data).__name__}"
        )
    return Split.from_arrays(data[0], data[1], "data")
