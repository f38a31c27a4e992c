"""The synthetic digits, drawn by the program itself: a substitute for MNIST, and more handwriting.

The points of a style are varied, with splines through them and ink along these. How much each
thing varies was chosen by looking at the drawings and by the accuracy on MNIST's *training* images
of a network trained on the drawings alone; its test images chose nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.data.splits import Split, to_splits
from mnist_ce.data.tables import read_arrays
from mnist_ce.reader.mnist_format import BOX_SIZE, FIELD_SIZE
from mnist_ce.system.device import use_threads
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, write_atomically
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

Point = tuple[float, ...]
"""(x, y), or the rectangle (x, y, x2, y2) in which a point lies; a `Style` has rectangles only."""
Piece = tuple[Point, ...]

FILE_NAME = "digits-1.npz"  # with the version of the drawings; others are drawn again
SPLITS = {"train": (60_000, 1), "test": (10_000, 2)}  # images, seed
_NUM_CLASSES = 10
_CHUNK = 64  # images drawn at once: their distances still fit a processor's cache
_SAMPLES_PER_HEIGHT = 36  # dense enough that the drawn discs blend at any pen's width


@dataclass(frozen=True)
class Style:
    """One way of writing a digit, 0 to 9; the TOML files explain the rest."""

    digit: int
    weight: float
    pieces: tuple[Piece, ...]
    variation: float = 1.0

    def __post_init__(self) -> None:
        pieces = tuple(tuple((*point, *point)[:4] for point in piece) for piece in self.pieces)
        object.__setattr__(self, "pieces", pieces)

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(dict.fromkeys(point for piece in self.pieces for point in piece))

    @property
    def free_ends(self) -> frozenset[Point]:
        uses = Counter(point for piece in self.pieces for point in piece)
        ends = {end for piece in self.pieces for end in (piece[0], piece[-1])}
        return frozenset(end for end in ends if uses[end] == 1)


@functools.cache
def load_styles(name: str = "mnist") -> tuple[Style, ...]:
    """Return the styles of MNIST's writers or of many countries, `world`; those of 0 come first."""
    content = Path(__file__).with_name(f"{name}_styles.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(content)
    styles = []
    if shared := tables.get("mnist"):  # styles that both have
        chosen = (style for style in load_styles() if style.digit in shared["digits"])
        styles = [replace(style, variation=shared["variation"]) for style in chosen]
    for digit, rows in tables.get("styles", tables).items():
        for row in rows:
            pieces = tuple(tuple(map(tuple, piece)) for piece in row["pieces"])
            styles.append(Style(int(digit), row["weight"], pieces, row.get("variation", 1.0)))
    return tuple(sorted(styles, key=lambda style: style.digit))


def spline_matrix(style: Style) -> Tensor:
    """Return the weights, float32 [samples, points], of a style's points along its strokes.

    Each piece is a uniform Catmull-Rom spline (Catmull & Rom 1974) with mirrored end points: linear
    in its points, so that one matrix serves all their variations.
    """
    index = {point: i for i, point in enumerate(style.points)}
    blocks = []
    for piece in style.pieces:
        local = _piece_matrix(piece)  # [samples, len(piece)]
        block = torch.zeros(len(local), len(index))
        block.index_add_(1, torch.tensor([index[point] for point in piece]), local)
        blocks.append(block)
    return torch.cat(blocks)


def _piece_matrix(piece: Piece) -> Tensor:
    num_points = len(piece)
    points = torch.tensor(piece).view(num_points, 2, 2).mean(dim=1)  # the rectangles' middles
    length = float((points[1:] - points[:-1]).norm(dim=1).sum())
    t = torch.linspace(0, num_points - 1, max(int(length * _SAMPLES_PER_HEIGHT), 4))
    start = t.floor().clamp(max=num_points - 2).long()
    u = t - start
    weights = 0.5 * torch.stack(
        (-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, -(u**2) + u**3)
    )  # [4, samples]: for the points start - 1, start, start + 1, start + 2
    extended = torch.zeros(len(t), num_points + 2)  # with a mirrored point before and after
    for offset in range(4):
        extended.scatter_(1, (start + offset)[:, None], weights[offset][:, None])
    matrix = extended[:, 1:-1].clone()
    for end, beside in ((0, 1), (-1, -2)):
        matrix[:, end] += 2 * extended[:, end]
        matrix[:, beside] -= extended[:, end]
    return matrix


def draw(style: Style, num_images: int, generator: torch.Generator) -> Tensor:
    """Draw a style many times, each time differently: uint8 [num_images, 28, 28], as in MNIST."""
    centres, radii = _fit_to_box(*pen_path(style, num_images, generator))
    chunks = zip(torch.split(centres, _CHUNK), torch.split(radii, _CHUNK), strict=True)
    return torch.cat([_centre(_ink(*chunk, generator)) for chunk in chunks])


def pen_path(style: Style, num_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the pen's centres [n, samples, 2] (x, y) and radii [n, samples], in digit heights."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(num_images, *shape, generator=generator)

    def lognormal(median: float, spread: float) -> Tensor:
        return median * torch.exp(spread * normal(1))

    v = style.variation
    matrix = spline_matrix(style)  # [samples, points]
    num_points = matrix.shape[1]
    # A stroke's free ends vary most: it starts early or late, runs on or stops short.
    looseness = torch.tensor([1.5 if point in style.free_ends else 1.0 for point in style.points])
    sloppiness = lognormal(0.04, 0.5).clamp(max=0.09)[:, :, None] * looseness[:, None]
    corners = torch.tensor(style.points)
    low, high = corners[:, :2], corners[:, 2:]  # [points, 2] each
    points = low + v * sloppiness * normal(num_points, 2)  # [n, points, 2]
    if not torch.equal(low, high):
        points = points + (high - low) * torch.rand(points.shape, generator=generator)
    pressure = lognormal(0.145, 0.35) * (1 + 0.12 * normal(num_points))  # [n, points]
    centres = matrix @ points  # [samples, points] @ [n, points, 2] → [n, samples, 2]
    radii = (0.5 * pressure @ matrix.T).clamp(0.015, 0.12)
    x, y = centres[..., 0], centres[..., 1] - 0.5  # [n, samples]; y from -0.5 to 0.5

    # Proportions: how high the waist is, how wide the top beside the bottom, a bow.
    waist = torch.cos(math.pi * y.clamp(-0.5, 0.5))
    x = x * (1 + 0.35 * v * normal(1) * y) + 0.04 * v * normal(1) * waist
    y = y + 0.09 * v * normal(1) * waist
    # Mild elastic distortion: a few long waves across the page.
    for _ in range(3):
        phase = 2 * math.pi * torch.rand(num_images, 1, generator=generator)
        wave = torch.sin(4 * normal(1) * x + 4 * normal(1) * y + phase)
        x, y = x + 0.035 * v * normal(1) * wave, y + 0.035 * v * normal(1) * wave
    # Width, slant (most handwriting leans to the right), and a page that does not lie straight.
    x = x * lognormal(1.25, 0.25 * v).clamp(min=0.8)
    x = x - (0.2 + 0.15 * (1 + v) * normal(1)) * y
    angle = 0.12 * normal(1)
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    return torch.stack((x, y), dim=2), radii


def _fit_to_box(centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    # The ink's longer side becomes 20 pixels; the middle of the ink comes to 0.
    low = (centres - radii[:, :, None]).amin(dim=1)  # [n, 2]
    high = (centres + radii[:, :, None]).amax(dim=1)
    scale = BOX_SIZE / (high - low).amax(dim=1, keepdim=True)  # [n, 1]
    return (centres - ((low + high) / 2)[:, None]) * scale[:, None], radii * scale


def _ink(centres: Tensor, radii: Tensor, generator: torch.Generator) -> Tensor:
    """Return the ink of discs along the strokes: coverage, float32 [n, 20, 20] in [0, 1].

    A pixel's depth in a disc, `radius - distance`, is replaced by `(radius² - distance²) /
    (2 radius)`, which agrees with it to first order at the edge, where it matters, and is linear in
    (1, x, y, x² + y²): one matrix product gives all depths.
    """
    x, y = centres.unbind(dim=2)
    discs = torch.stack(
        ((radii**2 - x**2 - y**2) / (2 * radii), x / radii, y / radii, -0.5 / radii), dim=2
    )  # [n, samples, 4]
    axis = torch.arange(BOX_SIZE) - (BOX_SIZE - 1) / 2
    rows, columns = axis.repeat_interleave(BOX_SIZE), axis.repeat(BOX_SIZE)  # [400]
    pixels = torch.stack((torch.ones_like(rows), columns, rows, rows**2 + columns**2))
    depth = (discs @ pixels).amax(dim=1)  # [n, samples, 4] @ [4, 400] → [n, 400]
    # Rough paper: an edge that wavers from pixel to pixel.
    roughness = 0.15 * torch.rand(len(depth), 1, generator=generator)
    depth = depth + roughness * torch.randn(depth.shape, generator=generator)
    return (depth + 0.5).clamp(0, 1).reshape(-1, BOX_SIZE, BOX_SIZE)


def _centre(ink: Tensor) -> Tensor:
    """Centre ink as `mnist_format.centre_by_mass` does: float32 [n, 20, 20] → uint8 [n, 28, 28]."""
    values = (ink * 255).round()
    axis = torch.arange(BOX_SIZE, dtype=torch.float32)
    mass = values.sum(dim=(1, 2))
    starts = []
    for other in (2, 1):
        centre = (values.sum(dim=other) @ axis) / mass
        start = torch.ceil(FIELD_SIZE / 2 - 0.5 - centre).clamp(0, FIELD_SIZE - BOX_SIZE)
        starts.append(start.long()[:, None] + torch.arange(BOX_SIZE))  # [n, 20]
    field = torch.zeros(len(ink), FIELD_SIZE, FIELD_SIZE, dtype=torch.uint8)
    image = torch.arange(len(ink))[:, None, None]
    field[image, starts[0][:, :, None], starts[1][:, None, :]] = values.byte()
    return field


def generate(num_images: int, seed: int, styles: str = "mnist") -> Split:
    """Draw digits in the styles of `load_styles`, as many of each as can be, in random order.

    On another processor or version of torch a grey level may differ by one here and there.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    with use_threads(1):  # more would mostly wait for each other, as the steps are many and small
        for digit in range(_NUM_CLASSES):
            ways = [style for style in load_styles(styles) if style.digit == digit]
            num_wanted = len(range(digit, num_images, _NUM_CLASSES))
            weights = torch.tensor([style.weight for style in ways], dtype=torch.float32)
            positions = torch.rand(num_wanted, generator=generator) * weights.sum()
            chosen = torch.searchsorted(weights.cumsum(0), positions)
            for index, style in enumerate(ways):
                images.append(draw(style, int((chosen == index).sum()), generator))
            labels.append(torch.full((num_wanted,), digit))
        order = torch.randperm(num_images, generator=generator)
        return Split(torch.cat(images), torch.cat(labels))[order]


def load_synthetic(data_dir: Path) -> tuple[Split, Split]:
    """Read 60,000 training and 10,000 test digits, or draw and keep them."""
    paths = [folder / "synthetic" / FILE_NAME for folder in (data_dir, cache_dir())]
    for path in paths:
        with contextlib.suppress(DataError, KeyError):  # missing or damaged
            splits, _ = to_splits(read_arrays("npz", path), str(path))
            return splits["train"], splits["test"]
    logger.info("drawing 60,000 + 10,000 synthetic digits")
    train, test = (generate(num_images, seed) for num_images, seed in SPLITS.values())
    for path in paths:
        try:
            write_synthetic(path, train, test)
            break
        except OSError as error:
            logger.info(f"the synthetic digits cannot be kept in {path.parent}: {one_line(error)}")
    return train, test


def write_synthetic(path: Path, train: Split, test: Split) -> None:
    content, arrays = io.BytesIO(), dict[str, Any]()
    for part, split in (("train", train), ("test", test)):
        arrays |= {f"x_{part}": split.images.numpy(), f"y_{part}": split.labels.byte().numpy()}
    np.savez(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
