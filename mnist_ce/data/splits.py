"""Labelled images, and their division into training, validation and test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import UsageError

TEST_SHARE = 0.2  # of images that come without a test split


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 28, 28], bright on black, and labels, int64 [n], in the files' order."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> Split:
        return Split(self.images[chosen], self.labels[chosen])

    @classmethod
    def concatenate(cls, *splits: Split) -> Split:
        """Return the images of all splits, in this order."""
        images = torch.cat([split.images for split in splits])
        return cls(images, torch.cat([split.labels for split in splits]))

    def relabel(self, new_labels: Tensor) -> Split:
        """Replace each label i by `new_labels[i]`, leaving out the images where that is -1."""
        labels = new_labels[self.labels]  # [n]
        return Split(self.images, labels)[labels >= 0]

    def distinct(self) -> Split:
        """Return each pair of image and label once, in the order of their first places."""
        places: dict[tuple[bytes, int], int] = {}
        pairs = zip(self.images.numpy(), self.labels.tolist(), strict=True)
        for place, (image, label) in enumerate(pairs):
            places.setdefault((image.tobytes(), label), place)
        return self if len(places) == len(self) else self[torch.tensor([*places.values()])]


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Return the training split without `size` images, and these as the validation split.

    Which ones depends on `seed` alone. Both parts keep the order of `train`, and nothing is copied
    where `size` is 0. A `UsageError` if `size` is negative or leaves no image to train on.
    """
    if not 0 <= size < len(train):
        raise UsageError(
            f"data.validation_size is {size}; with {len(train)} training images it must be from 0 "
            f"to {len(train) - 1}"
        )
    if size == 0:
        return train, train[:0]
    order = torch.randperm(len(train), generator=derived_generator(seed, "validation"))
    held_out = torch.zeros(len(train), dtype=torch.bool)
    held_out[order[:size]] = True
    return train[~held_out], train[held_out]


def split_test(images: Split) -> tuple[Split, Split]:
    """Split off a fifth of the images of each label as test images; both parts keep their order.

    Which ones depends on the pixels alone, not on the order of the images or a run's seed: every
    run has the same test images, and few move when images are added.
    """
    keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.images]
    is_test = torch.zeros(len(images), dtype=torch.bool)
    for label in sorted(set(images.labels.tolist())):
        places = torch.nonzero(images.labels == label).flatten().tolist()
        places.sort(key=keys.__getitem__)
        is_test[places[: round(TEST_SHARE * len(places))]] = True
    return images[~is_test], images[is_test]
