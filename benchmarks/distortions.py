"""A contact sheet: digits as they are, and as a recipe distorts them.

    MNIST_CE_DATA_DIR=… python benchmarks/distortions.py --config best --out distortions.png

In each row the first image is the original (framed), the others are what the network sees of it in
so many steps. A distorted digit must still look like its class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from mnist_ce.config import resolve_config
from mnist_ce.data.augment import distort
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.loader import scale_pixels

SCALE = 3
PITCH = 28 * SCALE + 4
FRAME = (230, 120, 40)


def main() -> None:
    """Distort and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="best", help="a recipe or TOML file")
    parser.add_argument("--out", type=Path, default=Path("distortions.png"))
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--rows", type=int, default=2, help="images of each class")
    parser.add_argument("--columns", type=int, default=12, help="distortions of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    strengths = resolve_config(options.config).augment
    data = load_dataset(options.dataset, Path(resolve_config().data.dir))
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(data.train), generator=generator)
    labels = data.train.labels[order]
    classes = range(len(data.class_names))
    chosen = torch.cat([order[labels == label][: options.rows] for label in classes])
    originals = scale_pixels(data.train.images[chosen])  # [rows, 784]
    columns = [originals] + [
        distort(originals, strengths, seed=options.seed, step=step)
        for step in range(options.columns)
    ]
    draw(torch.stack(columns, dim=1).view(len(chosen), -1, 28, 28)).save(options.out)
    print(f"{options.out}: {len(chosen)} images, {options.columns} distortions each, {strengths}")


def draw(images: torch.Tensor) -> Image.Image:
    """Return a picture of [rows, columns, 28, 28] in [0, 1], dark on light."""
    num_rows, num_columns = images.shape[:2]
    sheet = Image.new("RGB", (num_columns * PITCH + 4, num_rows * PITCH + 4), "white")
    pen = ImageDraw.Draw(sheet)
    pixels = (255 * (1 - images)).round().numpy().astype(np.uint8)
    for row in range(num_rows):
        for column in range(num_columns):
            left, top = 4 + column * PITCH, 4 + row * PITCH
            picture = Image.fromarray(pixels[row, column])
            sheet.paste(picture.resize((28 * SCALE,) * 2, Image.Resampling.NEAREST), (left, top))
            pen.rectangle(
                (left - 1, top - 1, left + 28 * SCALE, top + 28 * SCALE),
                outline=(220, 220, 220) if column else FRAME,
            )
    return sheet


if __name__ == "__main__":
    main()
