"""A folder of labelled images as a dataset."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_ce.data.splits import DIGITS, Split
from mnist_ce.reader.detector import load_detector
from mnist_ce.reader.image_io import SUFFIXES
from mnist_ce.reader.pool import PreprocessedImage, PreprocessOptions, shared_pool
from mnist_ce.reader.segmentation import CROWDED
from mnist_ce.system.errors import DataError
from mnist_ce.system.text import CONTROL_CHARACTERS, sanitize

logger = logging.getLogger(__name__)

MAX_NAMED = 3  # images that were left out, in the warning
TRAIN_NAMES, TEST_NAMES = {"train", "training", "trainingset"}, {"test", "testing", "testset"}


def read_folder(folder: Path) -> tuple[Split, Split | None, tuple[str, ...]]:
    """Read labelled images as `predict` reads them, and return them with the class names.

    An image's label is the name of the folder it lies in or, where that is `folder` itself, the
    digit that its name begins with (`7_1.png`). Folders called 0 to 9 give all ten classes;
    otherwise each name is a class, and whole images are resized as they are for other things than
    digits. Where a folder `train` and a folder `test` hold such folders, that is the split; else
    the second part is None. Equal images count once; hidden files are skipped. Images without a
    label or one clear digit and those that cannot be read are left out, with a warning.
    """
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found = (Path(parent, name) for name in files if not name.startswith("."))
        paths += [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths.sort()
    labels = {path: _class_name(path.relative_to(folder)) for path in paths}
    names = {name for name in labels.values() if name is not None}
    class_names = DIGITS if names <= set(DIGITS) else tuple(sorted(names))
    options = PreprocessOptions(crop=class_names == DIGITS)
    images: dict[str, dict[bytes, tuple[NDArray[np.uint8], int]]] = {"train": {}, "test": {}}
    problems: list[str] = []
    results = shared_pool().preprocess_all(paths, options)
    for result in results:  # several of a file with pages
        path = Path(str(result.path))
        name, pixels = labels[path], _only_digit(result)
        if name is None or isinstance(pixels, str):
            reason = "no label" if name is None else str(pixels)
            reason = f"page {result.page}: {reason}" if result.page else reason
            problems.append(sanitize(f"{path.relative_to(folder)} ({reason})"))
            continue
        label = class_names.index(name)
        key = hashlib.sha256(name.encode() + pixels.tobytes()).digest()
        images[_part(path.relative_to(folder)) or "train"][key] = pixels, label
    if problems:
        shown = "; ".join(problems[:MAX_NAMED])
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        logger.warning(
            f"{folder}: {len(problems)} of {len(paths)} images are left out: {shown}{more}"
        )
    if not images["train"]:
        problem = "has no labelled image" if folder.is_dir() else "is not a folder"
        raise DataError(
            f"{folder} {problem}: put images into folders named by class, 0 to 9, or begin their "
            "names with the digit, as in 7_1.png"
        )
    test = _split(images["test"]) if images["test"] else None
    return _split(images["train"]), test, class_names


def _part(path: Path) -> str | None:
    names = {name.lower() for name in path.parts[:-1]}
    return "train" if names & TRAIN_NAMES else "test" if names & TEST_NAMES else None


def _class_name(path: Path) -> str | None:
    folder = path.parent
    if folder.name and not _part(Path(folder.name, "image")):
        return None if re.search(CONTROL_CHARACTERS, folder.name) else folder.name
    digit = re.match(r"\d(?!\d)", path.name)
    return digit[0] if digit else None


def _only_digit(image: PreprocessedImage) -> NDArray[np.uint8] | str:
    """Return the image's digit, uint8 [28, 28], or why there is none.

    As in `predict` several hypotheses compete, but without the network, which has yet to be
    trained: the detector alone says how much each looks like a digit.
    """
    if image.error is not None:
        return image.error.removeprefix(f"{image.path} ")
    if not image.hypotheses:
        return "no ink found"
    detector, best = load_detector(), image.hypotheses[0]
    if len(image.hypotheses) > 1:
        pixels = np.stack([hypothesis.digits[0].pixels for hypothesis in image.hypotheses])
        log_odds = detector.scores(pixels)
        scores = [
            math.log(hypothesis.segmentation_score) - 2 * float(np.logaddexp(0, -odds))
            for hypothesis, odds in zip(image.hypotheses, log_odds, strict=True)
        ]
        best = image.hypotheses[int(np.argmax(scores))]
    if best.is_crowded:
        return CROWDED
    found = [lattice.whole for line in best.all_lines for lattice in line if not lattice.whole.mark]
    if len(found) > 1:
        log_odds = detector.scores(np.stack([digit.pixels for digit in found]))
        if (num_found := int((log_odds >= detector.threshold).sum())) > 1:
            return f"{num_found} digits found"
    return best.digits[0].pixels


def _split(images: dict[bytes, tuple[NDArray[np.uint8], int]]) -> Split:
    # In the order of their keys, which no file system decides.
    pixels, labels = zip(*(images[key] for key in sorted(images)), strict=True)
    return Split.from_arrays(np.stack(pixels), labels, "the folder")
