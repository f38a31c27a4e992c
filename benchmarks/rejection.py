"""How many digits the shipped detector rejects, and how many images of other things.

    MNIST_CE_DATA_DIR=… python -m benchmarks.rejection --measure 300

Digits are the 5,000 MNIST training images held out, plain and as hard images. Letters are of other
fonts than those that `scripts/train_detector.py` fits on, or drawn by hand in another way
(`generators/letters.py`). "Reduced" are images of few pixels, enlarged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import non_digits
from benchmarks.common import argument_parser, held_out_split, percent, print_table
from generators import handwriting_styles, hard_images_a, letters
from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.mnist_format import adjusted_threshold, load_detector
from mnist_ce.reader.segmentation import hypotheses

CHUNK = 50  # images per task of a process
# Without large ones, what needs no segmentation, and where the first hypothesis may be a shadow.
_LEFT_OUT = ("phone", "close_up", "mnist", "hand_shadow", "lit_board")
HARD_KINDS = [name for name in hard_images_a.KINDS if name not in _LEFT_OUT]
REDUCED = ("reduced hard mnist", "reduced letter, test fonts")
DigitImages: TypeAlias = NDArray[np.uint8]
Draw: TypeAlias = Callable[[np.random.Generator], Image.Image]
Candidates: TypeAlias = list[tuple[DigitImages, float]]
"""First digit, uint8 [28, 28], and foreground quality of each hypothesis about an image."""


def mnist_digits(*, held_out: bool) -> DigitImages:
    """Return MNIST's training images to measure on (held out) or to fit on."""
    images: DigitImages = held_out_split()[held_out].images.numpy()
    return images


def draw_function(kind: str, *, held_out: bool) -> Draw:
    """Return what draws images of a kind: `hard NAME`, `letter`, …, or one of `non_digits`."""
    if kind.startswith("reduced "):
        draw_large = draw_function(kind[8:], held_out=held_out)
        return lambda rng: non_digits.reduced(draw_large(rng), rng)
    if kind.startswith("drawn by "):
        glyphs = list(letters.GLYPHS)
        return lambda rng: letters.draw(glyphs[rng.integers(len(glyphs))], kind[9:], rng)
    if kind.startswith("hard "):
        draw_hard, digits = hard_images_a.KINDS[kind[5:]], mnist_digits(held_out=held_out)
        return lambda rng: draw_hard(digits[rng.integers(len(digits))], rng)
    kind, _, source = kind.partition(", ")
    if source == "system fonts":
        fonts = non_digits.system_fonts()
    else:
        names = non_digits.TEST_FONTS if held_out else non_digits.TRAINING_FONTS
        fonts = non_digits.font_files(names)
    texts = {
        "letter": non_digits.LETTERS,
        "plain": non_digits.PLAIN_LETTERS,
        "twin": non_digits.LOOK_ALIKES,
        "printed": "0123456789",
    }
    return non_digits.letter(fonts, texts[kind]) if kind in texts else non_digits.KINDS[kind]


@dataclass(frozen=True)
class Task:
    """Images to draw and to segment; the result does not depend on the process."""

    kind: str
    held_out: bool
    numbers: range


def segment_images(task: Task) -> list[Candidates]:
    """Draw the images of a task and return the candidates of each."""
    draw = draw_function(task.kind, held_out=task.held_out)
    seed = zlib.crc32(task.kind.encode())
    found = []
    for number in task.numbers:
        image = draw(np.random.default_rng([seed, task.held_out, number]))
        candidates = hypotheses(open_image(image))
        found.append([(h.digits[0].pixels, h.foreground_quality) for h in candidates])
    return found


def candidates_by_kind(
    counts: Mapping[str, int], *, held_out: bool
) -> Iterator[tuple[str, list[Candidates]]]:
    """Yield each kind with the candidates of so many images, made on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        pending = {
            kind: [
                pool.submit(segment_images, Task(kind, held_out, range(i, min(i + CHUNK, count))))
                for i in range(0, count, CHUNK)
            ]
            for kind, count in counts.items()
        }
        for kind, parts in pending.items():
            yield kind, [candidates for part in parts for candidates in part.result()]


def rejected_fractions(count: int) -> dict[str, float]:
    """Return the rejected fraction of each kind."""
    detector = load_detector()

    def is_rejected(candidates: Candidates) -> bool:
        if not candidates:
            return True
        digit, quality = candidates[0]
        return float(detector.scores(digit[None])[0]) < adjusted_threshold(
            detector.threshold, quality
        )

    counts = {f"hard {kind}": count // 4 for kind in HARD_KINDS}
    counts |= dict.fromkeys(non_digits.KINDS, count)
    for source in ("test fonts", *(["system fonts"] if non_digits.system_fonts() else [])):
        counts |= {f"{text}, {source}": count for text in ("plain", "letter", "twin", "printed")}
    counts |= {f"drawn by {pen}": count for pen in handwriting_styles.PENS} | dict.fromkeys(
        REDUCED, count
    )
    scores = detector.scores(mnist_digits(held_out=True))
    fractions = {"digits, MNIST": float((scores < detector.threshold).mean())}
    for kind, images in candidates_by_kind(counts, held_out=True):
        fractions[kind] = sum(map(is_rejected, images)) / len(images)
    hard = [value for kind, value in fractions.items() if kind.startswith("hard ")]
    return fractions | {"digits, mean of the hard kinds": sum(hard) / len(hard)}


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__)
    parser.add_argument("--measure", type=int, default=200, help="images per kind (hard: a fourth)")
    options = parser.parse_args()
    print_table(
        f"Images rejected by the detector, {options.measure} of each kind",
        {"images": str, "rejected": percent},
        list(rejected_fractions(options.measure).items()),
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
