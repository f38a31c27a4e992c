"""Training of the detector of non-digits that the package ships, `mnist_ce/reader/detector.npz`.

    MNIST_CE_DATA_DIR=… python -m scripts.train_detector --output detector.npz

Digits are 55,000 MNIST training images, hard and reduced images of them, and printed and drawn
digits. Non-digits are letters, printed and drawn by hand, and the images of
`benchmarks.non_digits`. Copies in thin strokes or of few pixels, as from photographs, are among
both. The other 5,000 training images set the threshold.
`python -m benchmarks.rejection` measures the shipped file.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.rejection import HARD_KINDS, DigitImages, candidates_by_kind, mnist_digits
from mnist_ce.data.extra import add_thin_copies
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic import Style, draw, load_styles
from mnist_ce.reader.mnist_format import DigitDetector

LETTERS = Path(__file__).with_name("letters.toml")
HIDDEN = (384, 64)
BATCH_SIZE = 512
REJECTED_DIGITS = 0.006  # of the held-out digits, where 1 % is allowed
SHARES = {  # how many of each kind to fit on, in units of --count
    "letter": 5.0, "plain": 1.0, "reduced letter": 1.0, "reduced hard mnist": 1.0, "printed": 0.75,
    "scribble": 3.0, "clothing": 2.0, "noise": 0.4, "noise28": 0.25, "clutter": 1.0,
    "blank": 0.25,
}  # fmt: skip
HARD_SHARE = 0.006
DRAWN_SHARE, LETTER_SHARE = 15.0, 10.0  # of what is drawn by hand
THIN_FRACTION = 0.2  # of MNIST's digits and of what is drawn by hand
TURNED, NUM_TURNED = ("scribble", "clothing", "clutter"), 4  # also turned and mirrored, how often


@cache
def warp_basis() -> Tensor:
    """Return what each coefficient of a warp adds to a coordinate, float32 [28, 784].

    The first three are x, y and 1, the others a coarse grid of 5×5 shifts.
    """
    pixels = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 28, 28], align_corners=False)
    shifts = torch.eye(25).view(1, 25, 5, 5)
    shifts = F.interpolate(shifts, (28, 28), mode="bicubic", align_corners=False)
    return torch.cat([pixels.reshape(784, 2).T, torch.ones(1, 784), shifts.view(25, 784)])


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply small random affine maps and elastic shifts to float32 [n, 1, 28, 28]."""
    n = len(images)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*(shape or (n,)), generator=generator)

    angle, shear = normal(0.08), normal(0.08)
    warp = torch.zeros(n, 2, 28)
    warp[:, 0, 0], warp[:, 0, 1] = angle.cos() * (1 + normal(0.06)), -angle.sin() + shear
    warp[:, 1, 0], warp[:, 1, 1] = angle.sin(), angle.cos() * (1 + normal(0.06))
    warp[:, :, 2] = normal(0.03, n, 2)
    warp[:, :, 3:] = normal(0.05, n, 2, 25)
    grid = (warp @ warp_basis()).view(n, 2, 28, 28).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def fit(digits: DigitImages, others: DigitImages, epochs: int, seed: int = 0) -> nn.Sequential:
    """Train by binary cross-entropy, both classes with equal weight, distorted at every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    layers = [[nn.Linear(*sizes), nn.ReLU()] for sizes in pairwise((784, *HIDDEN, 1))]
    model = nn.Sequential(*chain(*layers))[:-1]
    images = torch.from_numpy(np.concatenate([digits, others]))
    targets = torch.cat([torch.ones(len(digits)), torch.zeros(len(others))])
    weights = torch.where(targets > 0, 1.0, len(digits) / len(others))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    num_steps = epochs * (len(images) // BATCH_SIZE + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            batch = distort(images[chosen].unsqueeze(1).float() / 255, generator).flatten(1)
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


def drawn_letters(count: int, seed: int) -> DigitImages:
    """Draw letters and signs by hand, uint8 [n, 28, 28], each way in `LETTERS` equally often."""
    ways = [way for ways in tomllib.loads(LETTERS.read_text("utf-8")).values() for way in ways]
    generator = torch.Generator().manual_seed(seed)
    images = []
    for way in ways:
        strokes = [[point.split(",") for point in stroke.split()] for stroke in way.split("|")]
        pieces = tuple(tuple(tuple(int(v) / 100 for v in p) for p in s) for s in strokes)
        images.append(draw(Style(-1, 1.0, pieces), count // len(ways), generator).numpy())
    return np.concatenate(images)


def drawn_digits(count: int, seed: int) -> DigitImages:
    """Draw digits, uint8 [n, 28, 28], each style of MNIST and of the world equally often."""
    styles = load_styles() + load_styles("world")
    generator = torch.Generator().manual_seed(seed)
    drawn = [draw(style, count // len(styles), generator).numpy() for style in styles]
    return np.concatenate(drawn)


def thin_copies(images: DigitImages, fraction: float, seed: int) -> DigitImages:
    """Return thin copies of a fraction of the images, a quarter of them of few pixels."""
    split = Split(torch.from_numpy(images), torch.zeros(len(images)))
    return add_thin_copies(split, fraction, seed).images[len(images) :].numpy()


def turned(images: DigitImages, seed: int) -> DigitImages:
    """Return the images, each turned or mirrored in one of eight ways."""
    ways = np.random.default_rng(seed).integers(8, size=len(images))
    flipped = [image.T if way > 3 else image for image, way in zip(images, ways, strict=True)]
    return np.stack([np.rot90(image, way) for image, way in zip(flipped, ways, strict=True)])


def training_images(count: int) -> tuple[DigitImages, DigitImages]:
    """Return digits and non-digits, uint8 [n, 28, 28]; rare digits four times."""
    counts = {kind: round(count * share) for kind, share in SHARES.items()}
    counts |= {f"hard {kind}": round(count * HARD_SHARE) for kind in HARD_KINDS}
    digits = [mnist_digits(held_out=False), drawn_digits(round(DRAWN_SHARE * count), seed=11)]
    others = [drawn_letters(round(LETTER_SHARE * count), seed=12)]
    digits += [thin_copies(images, THIN_FRACTION, seed=13) for images in digits]
    others += [thin_copies(images, THIN_FRACTION, seed=14) for images in others]
    for kind, images in candidates_by_kind(counts, held_out=False):
        print(f"{kind}: {len(images)}, no ink in {images.count([])}", file=sys.stderr)
        if kind == "printed" or "hard " in kind:
            digits += [np.stack([candidates[0][0] for candidates in images if candidates])] * 4
        else:
            found = np.stack([digit for candidates in images for digit, _ in candidates])
            others += [found]
            if kind in TURNED:
                others += [turned(found, seed) for seed in range(NUM_TURNED)]
    return np.concatenate(digits), np.concatenate(others)


def save(model: nn.Sequential, path: Path) -> None:
    """Save the weights as float16 and the biases, with the threshold of the held-out digits."""
    layers = [
        (layer.weight.detach().numpy().T.astype(np.float16), layer.bias.detach().numpy())
        for layer in model
        if isinstance(layer, nn.Linear)
    ]
    plain = tuple((weight.astype(np.float32), bias) for weight, bias in layers)
    scores = DigitDetector(plain, threshold=0.0).scores(mnist_digits(held_out=True))
    arrays: dict[str, Any] = {f"weight{i}": weight for i, (weight, _) in enumerate(layers)}
    arrays |= {f"bias{i}": bias for i, (_, bias) in enumerate(layers)}
    arrays["threshold"] = np.float32(np.quantile(scores, REJECTED_DIGITS))
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Draw the images, train, and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("detector.npz"))
    parser.add_argument("--count", type=int, default=2000, help="images per share to fit on")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    digits, others = training_images(options.count)
    save(fit(digits, others, options.epochs), options.output)


if __name__ == "__main__":
    main()
