"""A folder of labelled images as a dataset."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_ce.data.splits import DIGITS, Arrays
from mnist_ce.data.tables import sort_name
from mnist_ce.reader.image_io import SUFFIXES
from mnist_ce.reader.mnist_format import load_detector
from mnist_ce.reader.pool import PreprocessedImage, PreprocessOptions, shared_pool
from mnist_ce.reader.segmentation import CROWDED
from mnist_ce.reader.text_lines import Digit
from mnist_ce.system.errors import DataError
from mnist_ce.system.text import CONTROL_CHARACTERS, sanitize

logger = logging.getLogger(__name__)

MAX_NAMED = 3  # images that were left out, in the warning


def read_folder(folder: Path) -> dict[str, Arrays]:
    """Read labelled images as `predict` reads them, by part; their labels are names of classes.

    An image's label is the name of the folder it lies in or, where that is no class, the digit that
    its own name begins with (`7_1.png`). Where the labels are digits, these are cut out; otherwise
    whole images are resized. Folders `train`, `valid` and `test` are parts. Equal images count
    once; what has no label, shows no clear digit or cannot be read is left out, with a warning.
    """
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        visible = (Path(parent, name) for name in files if not name.startswith("."))
        paths += [path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file()]
    images = _sorted(sorted(paths), folder)
    options = PreprocessOptions(crop={label for label, _ in images.values()} <= {*DIGITS, None})
    found: dict[str, dict[bytes, tuple[NDArray[np.uint8], str]]] = {}
    problems: list[str] = []
    results = shared_pool().preprocess_all([*images], options)
    for result in itertools.chain.from_iterable(results):
        path, pixels = Path(str(result.path)), _only_digit(result)
        label, part = images[path]
        if label is None or isinstance(pixels, str):
            reason = "no label" if label is None else str(pixels)
            reason = f"page {result.page}: {reason}" if result.page else reason
            problems.append(sanitize(f"{path.relative_to(folder)} ({reason})"))
            continue
        key = hashlib.sha256(label.encode() + pixels.tobytes()).digest()
        found.setdefault(part, {})[key] = pixels, label
    if problems:
        number = f"{len(problems)} of {len(images)} images"
        shown = "; ".join(problems[:MAX_NAMED]) + "; …" * (len(problems) > MAX_NAMED)
        logger.warning(f"{folder}: {number} are left out: {shown}")
    if not found:
        problem = "has no labelled image" if folder.is_dir() else "is not a folder"
        raise DataError(
            f"{folder} {problem}: put images into folders named by class, 0 to 9, or begin their "
            "names with the digit, as in 7_1.png"
        )
    parts = {}
    for part, pairs in found.items():
        # In the order of their keys, which no file system decides.
        pixels_of, labels = zip(*(pairs[key] for key in sorted(pairs)), strict=True)
        parts[part] = Arrays(np.stack(pixels_of), np.array(labels))
    return parts


def _sorted(paths: Sequence[Path], folder: Path) -> dict[Path, tuple[str | None, str]]:
    """Return the label, if there is one, and the part of each image."""
    folders = {path: path.relative_to(folder).parts[:-1] for path in paths}
    kinds = {name: sort_name(name)[:2] for names in folders.values() for name in names}
    stems = Counter(stem for stem, part in kinds.values() if part)
    # `train`, or `my_train` beside `my_test`; not `test tube`.
    parts = {name: p for name, (stem, p) in kinds.items() if p and (not stem or stems[stem] > 1)}
    labels: dict[Path, str | None] = {}
    for path, names in folders.items():
        name = next((name for name in reversed(names) if name not in parts), "")
        labels[path] = name if name and not re.search(CONTROL_CHARACTERS, name) else None
    classes = {*labels.values()} - {None}
    digits, others = classes & {*DIGITS}, classes - {*DIGITS}
    # One folder that is no digit, beside some that are or alone, is no class: names go before it.
    is_stray = len(others) == 1 and len(digits) != 1
    strays = others if is_stray else set()
    unknown = [path for path, label in labels.items() if label is None or label in strays]
    by_name = _digits_of(unknown, r"\d(?=[^\d.])" if digits else r"\d(?!\d)")
    if by_name or digits or not is_stray:
        labels.update({path: by_name.get(path) for path in unknown})
    part_of = {p: [parts[n] for n in names if n in parts] for p, names in folders.items()}
    return {path: (label, (*part_of[path], "train")[0]) for path, label in labels.items()}


def _digits_of(paths: Sequence[Path], form: str) -> dict[Path, str]:
    """Return the digit that each name begins with, but of no folder whose names are numbered.

    It stands last where what precedes it, with a number, is different for each (`train-04999-2`).
    """
    labels = {}
    for folder in {path.parent for path in paths}:
        names = {path: path.name for path in paths if path.parent == folder}
        digits = {p: found[0] for p, name in names.items() if (found := re.match(form, name))}
        num_numbers = sum(name[0].isdecimal() for name in names.values())
        is_numbered = len({*digits.values()}) == len(digits) < num_numbers  # 0, 1, …, 9, 10, …
        if not num_numbers:
            last = {p: found for p in names if (found := re.fullmatch(r"(.*\d\D+)(\d)", p.stem))}
            is_numbered = len({found[1] for found in last.values()}) < len(names)
            digits = {path: found[2] for path, found in last.items()}
        labels.update({} if is_numbered else digits)
    return labels


def _only_digit(image: PreprocessedImage) -> NDArray[np.uint8] | str:
    """Return the image's digit, uint8 [28, 28], or why there is none.

    The network that would choose among the hypotheses has yet to be trained: the detector does.
    """
    if image.error is not None:
        return image.error.removeprefix(f"{image.path} ")
    if not image.hypotheses:
        return "no ink found"
    detector = load_detector()

    def log_odds(digits: Sequence[Digit]) -> NDArray[np.float32]:
        return detector.scores(np.stack([digit.pixels for digit in digits]))

    odds = log_odds([hypothesis.digits[0] for hypothesis in image.hypotheses])
    likelihoods = np.array([hypothesis.segmentation_score for hypothesis in image.hypotheses])
    best = image.hypotheses[int(np.argmax(np.log(likelihoods) - 2 * np.logaddexp(0, -odds)))]
    if best.is_crowded:
        return CROWDED
    found = [lattice.whole for line in best.all_lines for lattice in line if not lattice.whole.mark]
    num_found = int((log_odds(found) >= detector.threshold).sum()) if len(found) > 1 else 1
    return f"{num_found} digits found" if num_found > 1 else best.digits[0].pixels
