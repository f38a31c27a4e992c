"""Addresses of images in datasets: `mnist:test[9729]`, `fashion-mnist:train`, `csv:FILE[0]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mnist_ce.config import OWN_DATASET
from mnist_ce.reader.geometry import Box
from mnist_ce.reader.pool import PreprocessedImage
from mnist_ce.reader.segmentation import Hypothesis
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.system.errors import UsageError


class Address(NamedTuple):
    """Images of a dataset: those to predict of it, of one of its splits, or a single one."""

    source: str
    split: str | None
    place: int | None

    def __str__(self) -> str:
        split = "" if self.split is None else f":{self.split}"
        return f"{self.source}{split}" + ("" if self.place is None else f"[{self.place}]")


def parse_address(text: object) -> Address | None:
    """Read `SOURCE:SPLIT[INDEX]`, of which one's own source needs neither; None: another text."""
    found = re.fullmatch(r"(.+?)(?::(train|validation|test))?(?:\[(\d+)\])?", str(text), re.DOTALL)
    if not isinstance(text, str) or found is None:
        return None
    source, split, index = found.groups()
    is_shipped = source in ("mnist", "fashion-mnist", "kmnist", "synthetic") and (split or index)
    if not is_shipped and not re.fullmatch(OWN_DATASET, source):
        return None
    return Address(
        source, "test" if is_shipped and not split else split, int(index) if index else None
    )


def images_at(address: Address, data_dir: str | Path | None = None) -> Iterator[PreprocessedImage]:
    """Yield the images of an address, which have 28×28 pixels already, with their classes.

    A UsageError if there is no such split or image; for the others see `load_dataset`.
    """
    from mnist_ce.config import resolve_config
    from mnist_ce.data.dataset import load_dataset, load_images

    folder = Path(resolve_config(flags={"data.dir": data_dir and str(data_dir)}).data.dir)
    if address.split is None:
        images, labels, names = load_images(address.source, folder)
    else:
        dataset = load_dataset(address.source, folder)
        if (split := getattr(dataset, address.split, None)) is None:
            raise UsageError(f"{address.source} has no {address.split} images")
        images, labels, names = split.images, split.labels, dataset.class_names
    chosen = range(len(images)) if address.place is None else [address.place]
    if chosen[-1] >= len(images):
        raise UsageError(f"{address}: there are {len(images):,} images, counted from 0")
    source, pixels = str(address._replace(place=None)), images.numpy()
    for index in chosen:
        hypothesis = Hypothesis([[Lattice.of(Digit(pixels[index], Box(0, 0, 28, 28)))]])
        truth = None if labels is None else names[int(labels[index])]
        yield PreprocessedImage(f"{source}[{index}]", [hypothesis], truth=truth)
