"""Labelled images, and their division into training and validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 28, 28], bright on black, and labels, int64 [n], in the files' order."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> Split:
        return Split(self.images[chosen], self.labels[chosen])


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
