"""Labelled images, and their division into training, validation and test images."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.text import one_line

DIGITS = tuple("0123456789")
TEST_FRACTION = 0.2  # of images that come without a test split
IMAGE_SHAPES = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))
MAX_CLASSES = 1_000
BLOCK = 1_000  # images that are converted at a time
_IDX_UINT8 = 8


def idx_header(*shape: int) -> bytes:
    """Return what precedes the values, row-major, of an unsigned-byte array in an IDX file.

    0, 0, type, number of dimensions; one big-endian uint32 each: http://yann.lecun.com/exdb/mnist/.
    """
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _IDX_UINT8, len(shape), *shape)


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
    def from_arrays(cls, images: object, labels: object, name: str) -> Split:
        """Return images and labels in arrays, tensors or lists as a split.

        Args:
            images: [n, 28, 28], [n, 1, 28, 28], [n, 28, 28, 1] or [n, 784], bright on black, of
                whatever type, from 0 to 255 or, where nothing is above 1, from 0 to 1.
            labels: Whole numbers from 0, [n] or [n, 1].
            name: Begins the messages.

        Raises:
            DataError: If a shape or value is wrong.
        """
        try:
            pixels, classes = (
                np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
                for values in (images, labels)
            )
        except ValueError as error:  # lists of different lengths
            raise DataError(f"{name}: {one_line(error)}") from None
        for array in (pixels, classes):
            if array.dtype.kind not in "buif":
                raise DataError(f"{name} holds {array.dtype}, not numbers")
        shape, num_images = list(pixels.shape), len(pixels) if pixels.shape else 0
        if pixels.shape[1:] not in IMAGE_SHAPES:
            raise DataError(f"{name}: images of shape {shape}, expected [n, 28, 28] or [n, 784]")
        if classes.shape not in ((num_images,), (num_images, 1)):
            shape = list(classes.shape)
            raise DataError(f"{name}: labels of shape {shape}, expected [{num_images}]")
        if not num_images:
            raise DataError(f"{name}: there is no image in it")
        low, high = pixels.min(), pixels.max()
        if not 0 <= low <= high <= 255:  # false for NaN, too
            raise DataError(
                f"{name}: a pixel is not from 0 to 255, or 0 to 1 and not normalised further: they "
                f"are {pixels.dtype} from {low:g} to {high:g}"
            )
        is_label = (classes >= 0) & (classes < MAX_CLASSES) & (classes == np.trunc(classes))
        if not is_label.all():
            raise DataError(f"{name}: a label is not a whole number from 0 to {MAX_CLASSES - 1}")
        scale = np.float32(255 if high <= 1 else 1)
        if pixels.dtype != np.uint8 or scale != 1:
            rounded = np.empty(pixels.shape, np.uint8)
            for start in range(0, num_images, BLOCK):  # many bytes a pixel are not held twice
                rounded[start : start + BLOCK] = np.rint(pixels[start : start + BLOCK] * scale)
            pixels = rounded
        pixels = np.ascontiguousarray(pixels).reshape(-1, 28, 28)
        return cls(torch.from_numpy(pixels), torch.from_numpy(classes.astype(np.int64).ravel()))

    @classmethod
    def concatenate(cls, *splits: Split) -> Split:
        images = torch.cat([split.images for split in splits])
        return cls(images, torch.cat([split.labels for split in splits]))

    def relabel(self, new_labels: Tensor) -> Split:
        """Replace each label i by `new_labels[i]`, leaving out the images where that is -1."""
        labels = new_labels[self.labels]  # [n]
        is_chosen, relabelled = labels >= 0, Split(self.images, labels)
        return relabelled if bool(is_chosen.all()) else relabelled[is_chosen]  # copies the images

    def keys(self) -> list[bytes]:
        """Return a key of each image: equal images, and only those, have equal keys."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images.numpy()]

    def distinct(self) -> Split:
        """Return each pair of image and label once, in the order of their first places."""
        first: dict[tuple[bytes, int], int] = {}
        for place, pair in enumerate(zip(self.keys(), self.labels.tolist(), strict=True)):
            first.setdefault(pair, place)
        return self if len(first) == len(self) else self[torch.tensor([*first.values()])]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the meaning of label 0, 1, …."""

    name: str  # never `auto`; a path in it is absolute
    train: Split
    test: Split  # for reporting, never for choosing anything
    class_names: tuple[str, ...]
    mnist: Split | None = None  # MNIST's training images beside one's own, never for validation
    split_note: str | None = None  # how the test images were chosen, if not by the dataset

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all images and labels: training's, test's, `mnist`'s, as IDX files."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.mnist)):
            for values in (split.images, split.labels):
                digest.update(idx_header(*values.shape))
                digest.update(values.to(torch.uint8).contiguous().numpy().data)
        return digest.hexdigest()


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Return the training split without `size` images, and these as the validation split.

    Which ones depends on `seed` alone. Both parts keep the order of `train`, and nothing is copied
    where `size` is 0. A `UsageError` if `size` leaves no image to train on.
    """
    if not 0 <= size < len(train):
        limits = f"with {len(train)} training images it must be from 0 to {len(train) - 1}"
        raise UsageError(f"data.validation_size is {size}; {limits}")
    if size == 0:
        return train, train[:0]
    order = torch.randperm(len(train), generator=derived_generator(seed, "validation"))
    held_out = torch.zeros(len(train), dtype=torch.bool)
    held_out[order[:size]] = True
    return train[~held_out], train[held_out]


def split_test(images: Split) -> tuple[Split, Split]:
    """Split off a fifth of the images of each label as test images; both parts keep their order.

    Which ones depends on the pixels alone, not on the order of the images or a run's seed: every
    run has the same test images, and few move when images are added. No image is in both parts.
    """
    keys = images.keys()
    is_test = torch.zeros(len(images), dtype=torch.bool)
    for label in set(images.labels.tolist()):
        places = torch.nonzero(images.labels == label).flatten().tolist()
        in_order = sorted(keys[place] for place in places)
        first_kept = in_order[round(TEST_FRACTION * len(places))]
        is_test[places] = torch.tensor([keys[place] < first_kept for place in places])
    return images[~is_test], images[is_test]
