"""Training of the detector of non-digits that the package ships, `mnist_ce/reader/detector.npz`.

    MNIST_CE_DATA_DIR=… python -m scripts.train_detector --output detector.npz

Digits are 55,000 MNIST training images, hard images of them, printed ones, and drawn ones in the
hands of the world. The other 5,000 training images set the threshold.
`python -m benchmarks.rejection` measures the shipped file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.rejection import HARD_KINDS, DigitImages, candidates_by_kind, mnist_digits
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader.detector import DigitDetector

NUM_HIDDEN = 256
REJECTED_DIGITS = 0.006  # of the held-out digits, where 1 % is allowed
SHARES = {  # how many of each kind to fit on, in units of --count
    "letter": 4.0, "plain": 2.0, "printed": 0.75, "scribble": 2.25, "clothing": 1.0,
    "noise": 0.75, "noise28": 0.75, "clutter": 0.75, "blank": 0.25,
}  # fmt: skip
HARD_SHARE = 0.02
DRAWN_SHARE = 10.0


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply small random affine maps and elastic shifts to float32 [n, 1, 28, 28]."""
    n = len(images)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*(shape or (n,)), generator=generator)

    angle, shear = normal(0.08), normal(0.08)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * (1 + normal(0.06)), -angle.sin() + shear
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos() * (1 + normal(0.06))
    theta[:, :, 2] = normal(0.03, n, 2)
    grid = F.affine_grid(theta, [n, 1, 28, 28], align_corners=False)
    coarse = normal(0.05, n, 2, 5, 5)
    shift = F.interpolate(coarse, (28, 28), mode="bicubic", align_corners=False)
    return F.grid_sample(images, grid + shift.permute(0, 2, 3, 1), align_corners=False)


def fit(digits: DigitImages, others: DigitImages, epochs: int, seed: int = 0) -> nn.Sequential:
    """Train by binary cross-entropy, both classes with equal weight, distorted at every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, 1))
    images = torch.from_numpy(np.concatenate([digits, others]))
    targets = torch.cat([torch.ones(len(digits)), torch.zeros(len(others))])
    weights = torch.where(targets > 0, 1.0, len(digits) / len(others))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    num_steps = epochs * (len(images) // 256 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(256):  # type: ignore[no-untyped-call]
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


def training_images(count: int) -> tuple[DigitImages, DigitImages]:
    """Return digits and non-digits, uint8 [n, 28, 28]; hard and printed digits three times."""
    counts = {kind: round(count * share) for kind, share in SHARES.items()}
    counts |= {f"hard {kind}": round(count * HARD_SHARE) for kind in HARD_KINDS}
    drawn = generate(round(DRAWN_SHARE * count), seed=11, styles="hands").images.numpy()
    others, digits = [], [mnist_digits(held_out=False), drawn]
    for kind, images in candidates_by_kind(counts, held_out=False):
        print(f"{kind}: {len(images)}, no ink in {images.count([])}", file=sys.stderr)
        if kind == "printed" or kind.startswith("hard "):
            digits += [np.stack([candidates[0][0] for candidates in images if candidates])] * 3
        else:
            others += [digit for candidates in images for digit, _ in candidates]
    return np.concatenate(digits), np.stack(others)


def save(model: nn.Sequential, path: Path) -> None:
    """Save the weights, the largest as float16, with the threshold of the held-out digits."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    weights = {
        "hidden_weight": state["0.weight"].T.astype(np.float16),
        "hidden_bias": state["0.bias"],
        "output_weight": state["2.weight"][0],
        "output_bias": state["2.bias"][0],
    }
    plain = {name: array.astype(np.float32) for name, array in weights.items()}
    output_bias = float(plain.pop("output_bias"))
    detector = DigitDetector(**plain, output_bias=output_bias, threshold=0.0)
    scores = detector.scores(mnist_digits(held_out=True))
    np.savez_compressed(path, **weights, threshold=np.float32(np.quantile(scores, REJECTED_DIGITS)))


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
