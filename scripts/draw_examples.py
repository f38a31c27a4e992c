"""Draws the images in `examples/`: handwriting on paper, as a phone sees it; no image is of MNIST.

python -m scripts.draw_examples [FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from generators.handwriting_styles import STYLES, Rng, Strokes
from generators.hard_images_b import Float, camera, ink_over, lamp, lines, paper, sensor
from generators.letters import GLYPHS, stroke

# The styles of one writer, by digit.
WRITER = dict(zip("0123456789", (
    "0 plain", "1 short upstroke", "2 plain", "3 round", "4 open", "5 bar apart", "6 narrow",
    "7 bar", "8 one stroke", "9 bent",
), strict=True))  # fmt: skip
# For each file: lines of text, a digit's height in pixels, the seed, whether the paper is ruled.
EXAMPLES: dict[str, tuple[list[str], int, int, bool]] = {
    "seven": (["7"], 170, 1, False),
    "postcode": (["48213"], 110, 2, False),
    "sheet": (["48213", "90567", "3524 18", "70896"], 84, 3, True),
    "letter": (["K"], 170, 4, False),
}
SUPERSAMPLING = 3


def shapes(character: str, rng: Rng) -> Strokes:
    """Return the strokes of a digit or letter in the unit square."""
    if character in WRITER:
        return STYLES[WRITER[character]](rng)
    return [stroke(parts, rng) for parts in GLYPHS[character]]


def write(text: list[str], height: int, rng: Rng) -> Float:
    """Return the coverage [h, w] of a pen that writes lines of text with a slight slant."""
    pitch, step, margin = round(1.75 * height), 0.95 * height, 0.9 * height
    width = round(2 * margin + step * (max(map(len, text)) - 1) + 0.7 * height)
    size = max(width, round(2.2 * height)), pitch * len(text) + round(0.8 * height)
    page = Image.new("L", (SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]))
    canvas, nib = ImageDraw.Draw(page), 0.075 * height * SUPERSAMPLING
    for row, line in enumerate(text):
        for column, character in enumerate(line):
            if character == " ":
                continue
            scale = height * rng.uniform(0.92, 1.08)
            left = (
                (size[0] - step * (len(line) - 1) - 0.7 * height) / 2 if len(text) == 1 else margin
            )
            place = left + step * column, 0.6 * height + pitch * row
            for points in shapes(character, rng):
                x, y = points.T
                moved = np.stack([0.68 * x - 0.12 * (y - 1), y], axis=1) * scale
                placed = (moved + place + rng.normal(0, 0.015 * height, 2)) * SUPERSAMPLING
                canvas.line([(a, b) for a, b in placed.tolist()], fill=255, width=round(nib))
                for a, b in placed.tolist():
                    canvas.ellipse((a - nib / 2, b - nib / 2, a + nib / 2, b + nib / 2), fill=255)
    return np.asarray(page.resize(size, Image.Resampling.BOX), np.float64) / 255


def draw(name: str) -> Image.Image:
    """Draw the example of this name."""
    text, height, seed, is_ruled = EXAMPLES[name]
    rng = np.random.default_rng(seed)
    coverage = write(text, height, rng)
    page = paper(coverage.shape, (0.94, 0.92, 0.87), 0.012, rng)
    if is_ruled:
        ruling = lines(coverage.shape, 1.75 * height, 2.0, 0.0, 0.0)
        ruling[: round(height)] = 0  # the head of the page
        page = ink_over(page, ruling, (0.45, 0.6, 0.8), 0.7)
    page = ink_over(page, coverage, (0.08, 0.10, 0.32), 0.9)
    scene = camera(page * lamp(coverage.shape, 0.35, rng), 0.012, rng)
    return sensor(scene, rng, exposure=1.02, quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("examples"))
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    for name in EXAMPLES:
        draw(name).save(folder / f"{name}.jpg", quality="keep")
