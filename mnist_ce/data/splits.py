"""Labelled images as a source has them, and as training, validation and test images."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_ce.system.device import derived_generator
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.text import one_line, sanitize

DIGITS = tuple("0123456789")
TEST_FRACTION = 0.2  # of images that come without a test split
IMAGE_SHAPES = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))
MAX_CLASSES = 1_000
BLOCK = 1_000  # images that are converted at a time
QMNIST_COLUMNS = 8  # of its labels: the class, then where the digit comes from
_IDX_UINT8 = 8
# How images may differ from MNIST's, each with what undoes it; of the last three, any sequence
# of them is one of the eight ways to turn and mirror a square.
CONVERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda images: 255 - images,
    "transposed": lambda images: images.mT,
    "mirrored": lambda images: images.flip(2),
    "flipped": lambda images: images.flip(1),
}


def convert(images: Tensor, names: Sequence[str]) -> Tensor:
    """Undo some of `CONVERSIONS`."""
    for name in names:
        images = CONVERSIONS[name](images)
    return images.contiguous()


def idx_header(*shape: int) -> bytes:
    """Return the head of an IDX file of bytes: http://yann.lecun.com/exdb/mnist/."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _IDX_UINT8, len(shape), *shape)


class Arrays(NamedTuple):
    """Images and labels as a source has them: the forms that `to_splits` takes."""

    images: object
    labels: object | None  # None where the source has none


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
    validation: Split | None = None  # those that the dataset itself holds out to choose by
    whole: Split | None = None  # all images in their order, where the program split off the test

    def as_test(self) -> Dataset:
        """Return it with all images as test images, where it has none of its own."""
        whole = self.whole
        return self if whole is None else replace(self, train=whole, test=whole, split_note=None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all images and labels, as IDX files, in the order of the splits here."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.mnist, self.validation)):
            for values in (split.images, split.labels):
                digest.update(idx_header(*values.shape))
                digest.update(values.to(torch.uint8).contiguous().numpy().data)
        return digest.hexdigest()


def to_splits(
    parts: Mapping[str, Arrays],
    name: str,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the images and labels of a source, part by part, as splits of the same classes.

    The class of a label is the one of `class_names`, else of the ten digits, that it names; or it
    is a number from 0 that counts in `class_names`. Otherwise each label is a class.

    Images are those of `to_pixels`; labels are numbers or text, [n] or [n, 1], or one-hot. With
    `num_classes` a number means itself even without names, and there are at least so many classes.
    A DataError, which begins with `name`, if a shape or value is wrong, or too many labels differ.
    """
    places_of = {part: name if len(parts) == 1 else f"{name}, {part}" for part in parts}
    images = {part: to_pixels(arrays.images, places_of[part]) for part, arrays in parts.items()}
    labels = {
        part: _to_labels(arrays.labels, len(images[part]), places_of[part])
        for part, arrays in parts.items()
    }
    values: list[int | str] = sorted(
        {value for array in labels.values() for value in np.unique(array).tolist()},
        key=lambda value: (isinstance(value, str), value),
    )
    are_numbers = all(isinstance(value, int) for value in values)
    highest = int(values[-1]) if are_numbers else 0
    is_indexed = num_classes is not None and are_numbers
    if len(values) > MAX_CLASSES or (is_indexed and highest >= MAX_CLASSES):
        raise DataError(
            f"{name} has {len(values):,} different labels, up to {values[-1]}: as if numbered, not "
            f"of at most {MAX_CLASSES:,} classes"
        )
    if is_indexed and not class_names:
        class_names = [str(n) for n in range(max(highest + 1, num_classes or 0))]
    texts = [str(value) for value in values]
    known = next((k for k in (class_names, DIGITS) if k and {*texts} <= {*k}), None)
    places = {
        value: (known or texts).index(text) for value, text in zip(values, texts, strict=True)
    }
    if class_names and known is not class_names and are_numbers:
        if highest < len(class_names):
            known, places = class_names, {value: int(value) for value in values}
        elif is_indexed:
            classes = f"its classes are 0 to {len(class_names) - 1}"
            raise DataError(f"{name} has the label {highest}, but {classes}")
    splits = {}
    for part, array in labels.items():
        distinct, inverse = np.unique(array, return_inverse=True)
        indices = np.array([places[value] for value in distinct.tolist()], np.int64)
        splits[part] = Split(images[part], torch.from_numpy(indices[inverse.ravel()]))
    return splits, tuple(known or texts)


def _to_array(values: object, name: str, kinds: str) -> NDArray[Any]:
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{name}: {one_line(error)}") from None
    if array.dtype.kind not in kinds:
        raise DataError(f"{name} holds {array.dtype}, not numbers")
    return array


def to_pixels(images: object, name: str) -> Tensor:
    """Return images in arrays, tensors or lists as uint8 [n, 28, 28].

    They are [n, 28, 28], [n, 1, 28, 28], [n, 28, 28, 1] or [n, 784], bright on black, of whatever
    type, from 0 to 255 or, where nothing is above 1, from 0 to 1. A DataError for others.
    """
    pixels = _to_array(images, name, "buif")
    if pixels.shape[1:] not in IMAGE_SHAPES:
        shape = list(pixels.shape)
        raise DataError(f"{name}: images of shape {shape}, expected [n, 28, 28] or [n, 784]")
    if not len(pixels):
        raise DataError(f"{name}: there is no image in it")
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= 255:  # false for NaN, too
        raise DataError(
            f"{name}: a pixel is not from 0 to 255, or 0 to 1 and not normalised further: they "
            f"are {pixels.dtype} from {low:g} to {high:g}"
        )
    scale = np.float32(255 if high <= 1 else 1)
    if pixels.dtype != np.uint8 or scale != 1:
        rounded = np.empty(pixels.shape, np.uint8)
        for start in range(0, len(pixels), BLOCK):  # many bytes a pixel are not held twice
            rounded[start : start + BLOCK] = np.rint(pixels[start : start + BLOCK] * scale)
        pixels = rounded
    return torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 28, 28))


def _to_labels(labels: object, num_images: int, name: str) -> NDArray[Any]:
    """Return one label of each image: whole numbers, or text where one is not a number, [n]."""
    values = _to_array(labels, name, "buifOSU")
    if values.dtype.kind in "OSU":
        flat = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.flat]
        values = np.array([sanitize(str(v).strip()) for v in flat]).reshape(values.shape)
        with contextlib.suppress(ValueError):
            values = values.astype(np.float64)
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind != "U":
        if np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all():  # one-hot
            values = values.argmax(axis=1)
        elif values.shape[1] == QMNIST_COLUMNS:
            values = values[:, 0]
    if values.shape not in ((num_images,), (num_images, 1)):
        shape = list(values.shape)
        raise DataError(f"{name}: labels of shape {shape}, expected [{num_images}]")
    values = values.ravel()
    if values.dtype.kind == "U":
        if not all(values):
            raise DataError(f"{name}: the label of image {int(np.argmin(values != ''))} is empty")
        return values
    if not ((values >= 0) & (values < 2**53) & (values == np.trunc(values))).all():
        raise DataError(f"{name}: a label is not a whole number from 0")
    return values.astype(np.int64)


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Return the training split without `size` images, and these as the validation split.

    Which ones depends on `seed` alone. Both parts keep the order of `train`.
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

    Which ones depends on the pixels alone: every run has the same test images, few move when images
    are added, and no image is in both parts.
    """
    keys = images.keys()
    is_test = torch.zeros(len(images), dtype=torch.bool)
    for label in set(images.labels.tolist()):
        places = torch.nonzero(images.labels == label).flatten().tolist()
        in_order = sorted(keys[place] for place in places)
        first_kept = in_order[round(TEST_FRACTION * len(places))]
        is_test[places] = torch.tensor([keys[place] < first_kept for place in places])
    return images[~is_test], images[is_test]
