"""Datasets from arrays, tensors and torch datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from mnist_ce.data.dataset import Dataset, make_dataset
from mnist_ce.data.splits import Split, split_validation
from mnist_ce.system.errors import UsageError

CUSTOM = "custom"
"""The name of a dataset that was given from Python."""
TEST_SHARE = 7  # one image in seven is held out for testing, as in MNIST


def is_pair_of_sets(data: object) -> bool:
    """Whether this is a training and a test set rather than images and labels."""
    return isinstance(data, (tuple, list)) and all(
        isinstance(part, (tuple, TorchDataset)) for part in data
    )


def custom_dataset(data: object, seed: int, class_names: Sequence[str] = ()) -> Dataset:
    """Return a dataset made from `(images, labels)`, a torch dataset, or a pair (training, test).

    Images are [n, 28, 28], [n, 1, 28, 28] or [n, 784], bright on black: uint8, bool, or floats in
    [0, 1]; labels are whole numbers [n]. Of one set alone, a seventh, chosen by `seed`, becomes the
    test split. A torch dataset yields (image, label); its transform is applied once.

    Args:
        data: See above.
        seed: Chooses the test images.
        class_names: What each label means; empty: the `classes` of a torchvision dataset, else the
            numbers.

    Raises:
        TypeError: If `data` is neither of these.
        UsageError: If shapes or values are wrong.
    """
    sets = list(data) if is_pair_of_sets(data) else [data]  # type: ignore[call-overload]
    splits = [_split(part) for part in sets]
    if len(splits) == 1:
        if len(splits[0]) == 1:
            raise UsageError("data has one image; training and testing need one each")
        splits = list(split_validation(splits[0], -(-len(splits[0]) // TEST_SHARE), seed))
    if len(splits) != 2 or not all(map(len, splits)):
        raise UsageError("data must be (images, labels), or a training and a test set, not empty")
    highest = max(int(split.labels.max()) for split in splits)
    classes = getattr(sets[0], "classes", None) or map(str, range(highest + 1))
    names = tuple(class_names) or tuple(str(name).partition(" - ")[0] for name in classes)
    if highest >= len(names):
        raise UsageError(f"data has the label {highest}, but there are {len(names)} classes")
    return make_dataset(CUSTOM, splits[0], splits[1], names)


def _split(data: object) -> Split:
    if isinstance(data, TorchDataset):
        is_raw = getattr(data, "transform", None) is getattr(data, "target_transform", None) is None
        if is_raw and hasattr(data, "data") and hasattr(data, "targets"):
            return _split((data.data, data.targets))
        items = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
        arrays = [np.asarray(image) for image, _ in items]
        return _split((np.stack(arrays), np.array([int(label) for _, label in items])))
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            "data must be (images, labels), a torch dataset, or a pair of these for training and "
            f"testing, not {type(data).__name__}"
        )
    images, labels = (torch.as_tensor(part).detach().cpu() for part in data)
    shape = images.shape  # [n, 28, 28], [n, 1, 28, 28], [n, 28, 28, 1] or [n, 784]
    if not len(images) or shape[1:].numel() != 784 or shape[-1] not in (1, 28, 784):
        raise UsageError(f"images must be [n, 28, 28] or [n, 784], not {list(shape)}")
    if labels.shape != shape[:1] or labels.is_floating_point() or bool((labels < 0).any()):
        raise UsageError(
            f"labels must be whole numbers from 0, one per image, [{len(images)}], not "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return Split(_to_uint8(images).view(-1, 28, 28), labels.long())


def _to_uint8(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.contiguous()
    low, high = images.min().item(), images.max().item()
    scale = 255 if high <= 1 and (images.is_floating_point() or images.dtype == torch.bool) else 1
    whole = (images.float() * scale).round()
    if not 0 <= low <= high <= 255 or (scale == 1 and not torch.equal(whole, images.float())):
        raise UsageError(
            "images must be uint8, or floats in [0, 1] that are not normalised further; these "
            f"are {images.dtype} from {low:g} to {high:g}"
        )
    return whole.to(torch.uint8).contiguous()
