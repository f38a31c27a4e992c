"""The ways in which people write each digit, as pen strokes, and the splines through them."""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

Point = tuple[float, ...]
"""(x, y), or the rectangle (x, y, x2, y2) in which a point lies; a `Style` has rectangles only."""
Piece = tuple[Point, ...]

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
        """The distinct points of all pieces, in writing order."""
        return tuple(dict.fromkeys(point for piece in self.pieces for point in piece))

    @property
    def free_ends(self) -> frozenset[Point]:
        """The points where a piece begins or ends and no other piece goes on."""
        uses = Counter(point for piece in self.pieces for point in piece)
        ends = {end for piece in self.pieces for end in (piece[0], piece[-1])}
        return frozenset(end for end in ends if uses[end] == 1)


@functools.cache
def load_styles(name: str = "mnist") -> tuple[Style, ...]:
    """Return the handwriting styles of MNIST's writers or, with `world`, of many countries.

    Those of 0 come first; `world` holds some of `mnist` too.
    """
    content = Path(__file__).with_name(f"{name}_styles.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(content)
    styles = []
    if "mnist" in tables:
        digits, variation = tables["mnist"]["digits"], tables["mnist"]["variation"]
        styles = [
            replace(style, variation=variation) for style in load_styles() if style.digit in digits
        ]
    for digit, rows in tables.get("styles", tables).items():
        for row in rows:
            pieces = tuple(tuple(map(tuple, piece)) for piece in row["pieces"])
            styles.append(Style(int(digit), row["weight"], pieces, row.get("variation", 1.0)))
    return tuple(sorted(styles, key=lambda style: style.digit))


def spline_matrix(style: Style) -> torch.Tensor:
    """Return the weights, float32 [samples, points], of a style's points along its strokes.

    Each piece is a uniform Catmull-Rom spline (Catmull & Rom 1974) whose end points are mirrored to
    give it a direction there. It is linear in its points: one matrix serves all their variations.
    """
    index = {point: i for i, point in enumerate(style.points)}
    blocks = []
    for piece in style.pieces:
        local = _piece_matrix(piece)  # [samples, len(piece)]
        block = torch.zeros(len(local), len(index))
        block.index_add_(1, torch.tensor([index[point] for point in piece]), local)
        blocks.append(block)
    return torch.cat(blocks)


def _piece_matrix(piece: Piece) -> torch.Tensor:
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
