"""How many digits are rejected, and how many pictures of other things: measure it, or fit it.

python benchmarks/rejection.py --data-dir DIR          measure with the shipped detector
python benchmarks/rejection.py --data-dir DIR --fit    train the detector again first

Digits are MNIST's training images: 55,000 to fit, and the 5,000 set aside (see `pictures`) to set
the threshold and to measure. Letters are of other fonts when measuring than when fitting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

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

from mnist_ce.preprocessing import find_digits, open_picture
from mnist_ce.preprocessing.detector import FILE, Detector, demanded, load_detector

NUM_HIDDEN = 48
REJECTED_DIGITS = 0.005  # of the held-out digits, half of what is allowed
Glyphs = NDArray[np.uint8]


def glyphs_of(pictures: Iterable[Image.Image]) -> tuple[Glyphs, int]:
    """Every reading's first glyph, and the number of pictures in which nothing was found."""
    found, empty = [], 0
    for picture in pictures:
        readings = find_digits(open_picture(picture))
        found += [reading.digits[0].glyph for reading in readings]
        empty += not readings
    return np.stack(found) if found else np.zeros((0, 28, 28), np.uint8), empty


def made(
    make: Callable[[np.random.Generator], Image.Image], count: int, seed: int
) -> Iterable[Image.Image]:
    """Pictures from one maker, each with its own seed."""
    return (make(np.random.default_rng([seed, i])) for i in range(count))


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


def fit_and_save(images: Glyphs, held_out: Glyphs, count: int, epochs: int) -> None:
    """Make the training pictures, train, set the threshold on held-out digits, and save."""
    fonts = nondigits.font_files(nondigits.TRAINING_FONTS)
    makers = {
        "letter": nondigits.letter(fonts),
        "plain": nondigits.letter(fonts, nondigits.PLAIN_LETTERS),
        **nondigits.KINDS,
    }
    share = {"letter": 4.0, "plain": 2.0, "clothing": 1.5, "scribble": 1.5, "blank": 0.2}
    others = []
    for number, (name, make) in enumerate(makers.items()):
        found, empty = glyphs_of(made(make, round(count * share.get(name, 1.0)), 100 + number))
        print(f"{name}: {len(found)} glyphs, nothing found in {empty}", file=sys.stderr)
        others.append(found)
    rng = np.random.default_rng(0)
    kinds = [kind for name, kind in wild_a.KINDS.items() if name not in ("phone", "mnist")]
    hard, _ = glyphs_of(
        kind(images[rng.integers(len(images))], np.random.default_rng([7, i]))
        for i in range(count // 20)
        for kind in kinds
    )
    printed, _ = glyphs_of(made(nondigits.letter(fonts, "0123456789"), count // 2, 99))
    digits = np.concatenate([images, *[hard] * 3, *[printed] * 3])
    model = fit(digits, np.concatenate(others), epochs)
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    weights = {
        "hidden_weight": state["0.weight"].T.astype(np.float16),
        "hidden_bias": state["0.bias"],
        "output_weight": state["2.weight"][0],
        "output_bias": state["2.bias"][0],
    }
    plain = {name: array.astype(np.float32) for name, array in weights.items()}
    detector = Detector(
        plain["hidden_weight"],
        plain["hidden_bias"],
        plain["output_weight"],
        float(plain["output_bias"]),
        0.0,
    )
    threshold = float(np.quantile(detector.scores(held_out), REJECTED_DIGITS))
    np.savez_compressed(FILE, **weights, threshold=np.float32(threshold))


def measure(held_out: Glyphs, count: int) -> dict[str, float]:
    """The rejected fraction of each kind."""
    detector = load_detector()

    def rejected(pictures: Iterable[Image.Image]) -> float:
        num_rejected = num_all = 0
        for picture in pictures:
            readings = find_digits(open_picture(picture))
            if readings:
                best = readings[0]
                score = detector.scores(best.digits[0].glyph[None])[0]
                num_rejected += score < demanded(detector.threshold, best.soundness)
            else:
                num_rejected += 1
            num_all += 1
        return num_rejected / num_all

    rows = {"digits, MNIST": float((detector.scores(held_out) < detector.threshold).mean())}
    for name, kind in wild_a.KINDS.items():
        if name not in ("phone", "mnist"):
            rows[f"digits, {name}"] = rejected(
                kind(held_out[i], np.random.default_rng([3, i])) for i in range(count // 4)
            )
    for name, make in nondigits.KINDS.items():
        rows[name] = rejected(made(make, count, 1))
    for source, fonts in (
        ("test fonts", nondigits.font_files(nondigits.TEST_FONTS)),
        ("system fonts", nondigits.system_fonts()),
    ):
        if not fonts:
            continue
        for name, text in (
            ("plain letters", nondigits.PLAIN_LETTERS),
            ("all letters", nondigits.LETTERS),
            ("twins", nondigits.TWINS),
            ("digits", "0123456789"),
        ):
            rows[f"{name}, {source}"] = rejected(made(nondigits.letter(fonts, text), count, 2))
    return rows


def main() -> None:
    """Fit if asked to, then measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--count", type=int, default=2000, help="pictures per kind to fit on")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--measure", type=int, default=200, help="pictures per kind to measure on")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    images, held_out, _ = training_images(Path(arguments.data_dir))
    if arguments.fit:
        fit_and_save(images, held_out, arguments.count, arguments.epochs)
    rows = measure(held_out, arguments.measure)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| pictures | rejected |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value:.1%} |")


if __name__ == "__main__":
    main()
