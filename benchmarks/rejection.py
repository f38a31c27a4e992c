"""How many digits are rejected, and how many pictures of other things: measure it, or fit it.

MNIST_CE_DATA_DIR=… python benchmarks/rejection.py          measure with the shipped detector
MNIST_CE_DATA_DIR=… python benchmarks/rejection.py --fit    train the detector again first

Digits are MNIST's training images: 55,000 to fit, and the 5,000 set aside (see `pictures`) to set
the threshold and to measure. To fit there are hard pictures of the former too, printed digits and
synthetic ones. Letters are of other fonts when measuring than when fitting.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import nondigits
import wild_a
from pictures import training_images

from mnist_ce.config import resolve_config
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader.detector import FILE, DigitDetector, adjusted_threshold, load_detector
from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.segmentation import hypotheses

NUM_HIDDEN = 256
REJECTED_DIGITS = 0.006  # of the held-out digits, where 1 % is allowed
CHUNK = 50  # pictures per task of a process
SHARES = {  # how many of each kind to fit on, in units of --count
    "letter": 4.0, "plain": 2.0, "printed": 0.75, "scribble": 7.0, "clothing": 2.0,
    "noise": 1.5, "noise28": 1.5, "clutter": 1.5, "blank": 0.5, "hard": 0.1,
}  # fmt: skip
HARD_KINDS = [name for name in wild_a.KINDS if name not in ("phone", "close_up", "mnist")]
Glyphs = NDArray[np.uint8]
Maker: TypeAlias = Callable[[np.random.Generator], Image.Image]


def digits_of(data_dir: Path, *, held_out: bool) -> Glyphs:
    """MNIST's training digits to fit on, or those set aside."""
    to_fit, set_aside, _ = training_images(data_dir)
    return set_aside if held_out else to_fit


def maker(kind: str, data_dir: Path, *, held_out: bool) -> Maker:
    """What makes pictures of a kind: `hard NAME`, `letter`, `plain`, …, or one of `nondigits`."""
    if kind.startswith("hard "):
        make_hard, digits = wild_a.KINDS[kind[5:]], digits_of(data_dir, held_out=held_out)
        return lambda rng: make_hard(digits[rng.integers(len(digits))], rng)
    kind, _, source = kind.partition(", ")
    if source == "system fonts":
        fonts = nondigits.system_fonts()
    else:
        names = nondigits.TEST_FONTS if held_out else nondigits.TRAINING_FONTS
        fonts = nondigits.font_files(names)
    texts = {
        "letter": nondigits.LETTERS,
        "plain": nondigits.PLAIN_LETTERS,
        "twin": nondigits.TWINS,
        "printed": "0123456789",
    }
    return nondigits.letter(fonts, texts[kind]) if kind in texts else nondigits.KINDS[kind]


@dataclass(frozen=True)
class Task:
    """Some pictures to make and to look at; the same whatever process does it."""

    kind: str
    data_dir: Path
    held_out: bool
    numbers: range


def readings_of(task: Task) -> list[list[tuple[Glyphs, float]]]:
    """Of each image, each hypothesis's first digit, uint8 [28, 28], and its foreground quality."""
    make = maker(task.kind, task.data_dir, held_out=task.held_out)
    name = zlib.crc32(task.kind.encode())
    found = []
    for number in task.numbers:
        picture = make(np.random.default_rng([name, task.held_out, number]))
        options = hypotheses(open_image(picture))
        found.append([(h.digits[0].pixels, h.foreground_quality) for h in options])
    return found


def all_readings(
    counts: dict[str, int], data_dir: Path, *, held_out: bool
) -> Iterator[tuple[str, list[list[tuple[Glyphs, float]]]]]:
    """Yield `readings_of` so many pictures of each kind, made on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        pending = {
            kind: [
                pool.submit(
                    readings_of,
                    Task(kind, data_dir, held_out, range(i, min(i + CHUNK, count))),
                )
                for i in range(0, count, CHUNK)
            ]
            for kind, count in counts.items()
        }
        for kind, parts in pending.items():
            yield kind, [picture for part in parts for picture in part.result()]


def distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small random affine maps and elastic shifts of float32 [n, 1, 28, 28]."""
    n = len(images)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*(shape or (n,)), generator=generator)

    turn, shear = normal(0.08), normal(0.08)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = turn.cos() * (1 + normal(0.06)), -turn.sin() + shear
    theta[:, 1, 0], theta[:, 1, 1] = turn.sin(), turn.cos() * (1 + normal(0.06))
    theta[:, :, 2] = normal(0.03, n, 2)
    grid = F.affine_grid(theta, [n, 1, 28, 28], align_corners=False)
    coarse = normal(0.05, n, 2, 5, 5)
    shift = F.interpolate(coarse, (28, 28), mode="bicubic", align_corners=False)
    return F.grid_sample(images, grid + shift.permute(0, 2, 3, 1), align_corners=False)


def fit(digits: Glyphs, others: Glyphs, epochs: int, seed: int = 0) -> nn.Sequential:
    """Train the detector: cross-entropy, both kinds equally weighty, distorted on the fly."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, 1))
    images = torch.from_numpy(np.concatenate([digits, others]))
    targets = torch.cat([torch.ones(len(digits)), torch.zeros(len(others))])
    weights = torch.where(targets > 0, 1.0, len(digits) / len(others))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, epochs * (len(images) // 256 + 1)
    )
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(256):  # type: ignore[no-untyped-call]
            batch = distorted(images[chosen].unsqueeze(1).float() / 255, generator).flatten(1)
            logits = model(batch)[:, 0]
            loss = F.binary_cross_entropy_with_logits(
                logits, targets[chosen] * 0.98 + 0.01, weight=weights[chosen]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / len(images):.4f}", file=sys.stderr)
    return model


def fit_and_save(data_dir: Path, count: int, epochs: int) -> None:
    """Make the training pictures, train, set the threshold on held-out digits, and save."""
    counts = {kind: round(count * share) for kind, share in SHARES.items()}
    num_hard = counts.pop("hard")
    counts |= {f"hard {kind}": num_hard for kind in HARD_KINDS}
    drawn = generate(round(2.5 * count), seed=11).images.numpy()
    others, digits = [], [digits_of(data_dir, held_out=False), drawn]
    for kind, pictures in all_readings(counts, data_dir, held_out=False):
        print(f"{kind}: {len(pictures)}, no ink in {pictures.count([])}", file=sys.stderr)
        if kind == "printed" or kind.startswith("hard "):
            found = [readings[0][0] for readings in pictures if readings]
            digits += [np.stack(found)] * 3
        else:
            others += [glyph for readings in pictures for glyph, _ in readings]
    model = fit(np.concatenate(digits), np.stack(others), epochs)
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    weights = {
        "hidden_weight": state["0.weight"].T.astype(np.float16),
        "hidden_bias": state["0.bias"],
        "output_weight": state["2.weight"][0],
        "output_bias": state["2.bias"][0],
    }
    plain = {name: array.astype(np.float32) for name, array in weights.items()}
    detector = DigitDetector(
        plain["hidden_weight"],
        plain["hidden_bias"],
        plain["output_weight"],
        float(plain["output_bias"]),
        0.0,
    )
    scores = detector.scores(digits_of(data_dir, held_out=True))
    np.savez_compressed(FILE, **weights, threshold=np.float32(np.quantile(scores, REJECTED_DIGITS)))
    load_detector.cache_clear()


def measure(data_dir: Path, count: int) -> dict[str, float]:
    """The rejected fraction of each kind."""
    detector = load_detector()

    def is_rejected(readings: list[tuple[Glyphs, float]]) -> bool:
        if not readings:
            return True
        glyph, soundness = readings[0]
        score = float(detector.scores(glyph[None])[0])
        return score < adjusted_threshold(detector.threshold, soundness)

    counts = {f"hard {kind}": count // 4 for kind in HARD_KINDS}
    counts |= dict.fromkeys(nondigits.KINDS, count)
    for source in ("test fonts", *(["system fonts"] if nondigits.system_fonts() else [])):
        for text in ("plain", "letter", "twin", "printed"):
            counts[f"{text}, {source}"] = count
    held_out = digits_of(data_dir, held_out=True)
    rows = {"digits, MNIST": float((detector.scores(held_out) < detector.threshold).mean())}
    for kind, pictures in all_readings(counts, data_dir, held_out=True):
        rows[kind] = sum(map(is_rejected, pictures)) / len(pictures)
    hard = [value for kind, value in rows.items() if kind.startswith("hard ")]
    rows["digits, mean of the hard kinds"] = sum(hard) / len(hard)
    return rows


def main() -> None:
    """Fit if asked to, then measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=resolve_config().data.dir, type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--count", type=int, default=2000, help="pictures per share to fit on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--measure", type=int, default=200, help="pictures per kind to measure on")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.fit:
        fit_and_save(arguments.data_dir, arguments.count, arguments.epochs)
    rows = measure(arguments.data_dir, arguments.measure)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| pictures | rejected |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value:.1%} |")


if __name__ == "__main__":
    main()
