"""Draws the digits of one unusual writer as PNGs, a folder per digit.

    python -m scripts.draw_one_writer FOLDER

The zeros have a slash, the ones a long upstroke, the sevens a hook and a bar. docs/own-data.md
adapts a network to them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mnist_ce.data.synthetic import Piece, Style, draw

# The pieces of each digit: x to the right, y down, a digit is about 1 high.
WRITER: dict[int, tuple[Piece, ...]] = {
    0: (
        ((0.25, 0.0), (-0.2, 0.2), (-0.3, 0.6), (0.0, 1.0), (0.35, 0.6), (0.25, 0.0)),
        ((0.5, -0.05), (-0.5, 1.05)),
    ),
    1: (((-0.45, 0.75), (0.0, 0.0), (0.02, 0.5), (0.0, 1.0)),),
    2: (
        (
            (-0.3, 0.1),
            (0.1, 0.0),
            (0.3, 0.25),
            (-0.05, 0.6),
            (-0.35, 0.95),
            (-0.2, 0.7),
            (0.1, 0.95),
            (0.45, 0.9),
        ),
    ),
    3: (((-0.35, 0.0), (0.3, 0.0), (-0.05, 0.4), (0.35, 0.65), (0.1, 1.0), (-0.35, 0.9)),),
    4: (((-0.05, 0.0), (-0.4, 0.65), (0.35, 0.6)), ((0.3, 0.2), (0.15, 1.0))),
    5: (
        ((0.0, 0.0), (-0.25, 0.4), (0.2, 0.45), (0.25, 0.85), (-0.3, 0.98)),
        ((-0.05, -0.02), (0.45, -0.08)),
    ),
    6: (((0.35, 0.0), (-0.25, 0.45), (-0.2, 0.95), (0.25, 0.9), (0.15, 0.6), (-0.2, 0.7)),),
    7: (
        ((-0.4, 0.18), (-0.35, 0.0), (0.35, 0.02), (0.05, 0.5), (-0.1, 1.0)),
        ((-0.25, 0.5), (0.35, 0.42)),
    ),
    8: (
        ((0.2, 0.1), (-0.2, 0.0), (-0.2, 0.35), (0.2, 0.35), (0.2, 0.1)),
        ((0.0, 0.45), (-0.35, 0.75), (0.0, 1.0), (0.35, 0.75), (0.0, 0.45)),
    ),
    9: (
        (
            (0.25, 0.1),
            (-0.2, 0.05),
            (-0.25, 0.4),
            (0.2, 0.4),
            (0.25, 0.1),
            (0.2, 0.6),
            (-0.05, 1.05),
            (-0.4, 0.85),
        ),
    ),
}


def write(folder: Path, num_each: int, seed: int) -> None:
    """Write pages of 200×220 pixels, each with one digit somewhere on it, dark on bright."""
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    for digit, pieces in WRITER.items():
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(draw(Style(digit, 1.0, pieces), num_each, generator)):
            ink = Image.fromarray(255 - pixels.numpy())
            page = Image.new("L", (200, 220), 245)
            place = int(random.integers(20, 70)), int(random.integers(20, 90))
            page.paste(ink.resize((112, 112), Image.Resampling.BICUBIC), place)
            page.save(folder / str(digit) / f"{index:02d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=10, help="images of each digit")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    write(options.folder, options.each, options.seed)
