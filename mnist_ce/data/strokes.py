"""The ways in which people write each digit, as pen strokes.

A way of writing is a few smooth pieces, each a list of points (x, y) that the pen goes through:
y runs from 0 at the top to 1 at the bottom, x is in the same unit with 0 in the middle. A corner is
where one piece ends and the next begins. Points written alike are one point, so pieces that join
here still join after every point has been moved a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["STYLES", "Style", "spline_matrix"]

Point = tuple[float, float]
Piece = tuple[Point, ...]

_SAMPLES_PER_HEIGHT = 36  # dense enough that the drawn discs blend at any pen's width


@dataclass(frozen=True)
class Style:
    """One way of writing a digit.

    Attributes:
        digit: What it is, 0 to 9.
        share: How common it is among the ways of writing this digit; they need not add up to 1.
        pieces: The smooth pieces of the strokes.
    """

    digit: int
    share: float
    pieces: tuple[Piece, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """The distinct points of all pieces, in the order of writing."""
        return tuple(dict.fromkeys(point for piece in self.pieces for point in piece))


def spline_matrix(style: Style) -> torch.Tensor:
    """Return the weights that turn a style's points into points along its strokes.

    Each piece is a uniform Catmull-Rom spline (Catmull & Rom 1974, *A class of local interpolating
    splines*) whose end points are mirrored to give it a direction there. The spline is linear in
    its points, so one matrix serves every variation of a style.

    Returns:
        float32 [samples, points]; each row adds up to 1.
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
    """Return the weights of one piece, float32 [samples, points of the piece]."""
    num_points = len(piece)
    points = torch.tensor(piece)
    length = float((points[1:] - points[:-1]).norm(dim=1).sum())
    t = torch.linspace(0, num_points - 1, max(int(length * _SAMPLES_PER_HEIGHT), 4))
    start = t.floor().clamp(max=num_points - 2).long()
    u = t - start
    weights = 0.5 * torch.stack(
        (
            -u + 2 * u**2 - u**3,
            2 - 5 * u**2 + 3 * u**3,
            u + 4 * u**2 - 3 * u**3,
            -(u**2) + u**3,
        )
    )  # [4, samples]: for the points start - 1, start, start + 1, start + 2
    extended = torch.zeros(len(t), num_points + 2)  # with a mirrored point before and after
    for offset in range(4):
        extended.scatter_(1, (start + offset)[:, None], weights[offset][:, None])
    matrix = extended[:, 1:-1].clone()
    matrix[:, 0] += 2 * extended[:, 0]
    matrix[:, 1] -= extended[:, 0]
    matrix[:, -1] += 2 * extended[:, -1]
    matrix[:, -2] -= extended[:, -1]
    return matrix


# fmt: off
STYLES: tuple[Style, ...] = (
    # 0: an oval that closes, one that overlaps itself, one left open, one begun with a curl
    Style(0, 4, (((0.05, 0.0), (-0.2, 0.1), (-0.31, 0.5), (-0.2, 0.9), (0.03, 1.0), (0.25, 0.87),
                  (0.32, 0.5), (0.22, 0.12), (0.03, 0.02)),)),
    Style(0, 2, (((0.14, 0.08), (-0.05, 0.0), (-0.25, 0.2), (-0.31, 0.55), (-0.18, 0.92),
                  (0.07, 1.0), (0.28, 0.8), (0.32, 0.42), (0.17, 0.08), (-0.08, 0.04)),)),
    Style(0, 1, (((-0.03, 0.02), (-0.24, 0.2), (-0.3, 0.55), (-0.17, 0.92), (0.07, 1.0),
                  (0.28, 0.8), (0.31, 0.4), (0.2, 0.1), (0.08, 0.0)),)),
    Style(0, 1, (((-0.1, 0.22), (0.05, 0.1), (0.03, 0.0), (-0.2, 0.12), (-0.31, 0.5), (-0.2, 0.9),
                  (0.05, 1.0), (0.28, 0.8), (0.31, 0.4), (0.2, 0.1), (0.02, 0.01)),)),
    # 1: a stroke, with a flag, with flag and foot, with a foot
    Style(1, 8, (((0.0, 0.0), (0.0, 1.0)),)),
    Style(1, 1.2, (((-0.2, 0.2), (0.0, 0.0)), ((0.0, 0.0), (0.0, 1.0)))),
    Style(1, 0.7, (((-0.2, 0.2), (0.0, 0.0)), ((0.0, 0.0), (0.0, 1.0)),
                   ((-0.24, 1.0), (0.24, 1.0)))),
    Style(1, 0.3, (((0.0, 0.0), (0.0, 1.0)), ((-0.22, 1.0), (0.22, 1.0)))),
    # 2: flat foot, loop in the foot, wavy foot, long neck, one like a Z
    Style(2, 3, (((-0.28, 0.2), (-0.12, 0.03), (0.14, 0.02), (0.27, 0.22), (0.17, 0.5),
                  (-0.06, 0.76), (-0.3, 0.98)),
                 ((-0.3, 0.98), (0.0, 0.97), (0.32, 0.98)))),
    Style(2, 3, (((-0.28, 0.18), (-0.1, 0.01), (0.14, 0.04), (0.24, 0.25), (0.15, 0.52),
                  (-0.05, 0.8), (-0.24, 0.97), (-0.34, 0.88), (-0.2, 0.77), (0.0, 0.88),
                  (0.2, 0.97), (0.4, 0.9)),)),
    Style(2, 2, (((-0.26, 0.24), (-0.16, 0.04), (0.1, 0.0), (0.26, 0.2), (0.16, 0.5),
                  (-0.08, 0.76), (-0.28, 0.93)),
                 ((-0.28, 0.93), (-0.1, 0.87), (0.12, 0.97), (0.36, 0.93)))),
    Style(2, 1, (((-0.22, 0.1), (0.0, 0.0), (0.2, 0.1), (0.22, 0.3), (0.05, 0.6), (-0.18, 0.86),
                  (-0.16, 0.99), (0.1, 0.97), (0.38, 0.9)),)),
    Style(2, 0.6, (((-0.27, 0.08), (0.0, 0.0), (0.24, 0.06)), ((0.24, 0.06), (0.1, 0.45),
                   (-0.28, 0.97)), ((-0.28, 0.97), (0.3, 0.98)))),
    # 3: two bows that meet in a corner, in a curve, in a small loop; a flat top; a long tail
    Style(3, 3, (((-0.25, 0.13), (-0.06, 0.0), (0.19, 0.07), (0.21, 0.29), (0.06, 0.43),
                  (-0.09, 0.47)),
                 ((-0.09, 0.47), (0.15, 0.52), (0.27, 0.71), (0.15, 0.93), (-0.08, 1.0),
                  (-0.29, 0.89)))),
    Style(3, 2, (((-0.24, 0.08), (0.0, 0.0), (0.2, 0.1), (0.17, 0.31), (0.01, 0.43), (0.02, 0.48),
                  (0.2, 0.58), (0.25, 0.78), (0.08, 0.97), (-0.14, 0.99), (-0.3, 0.9)),)),
    Style(3, 1, (((-0.24, 0.12), (-0.03, 0.0), (0.19, 0.09), (0.17, 0.3), (0.0, 0.46),
                  (-0.12, 0.49), (-0.1, 0.41), (0.05, 0.45), (0.24, 0.62), (0.22, 0.86),
                  (0.0, 1.0), (-0.27, 0.92)),)),
    Style(3, 1, (((-0.25, 0.03), (0.22, 0.01)), ((0.22, 0.01), (-0.04, 0.39)),
                 ((-0.04, 0.39), (0.18, 0.47), (0.27, 0.69), (0.13, 0.94), (-0.1, 1.0),
                  (-0.29, 0.9)))),
    Style(3, 1, (((-0.2, 0.1), (0.03, 0.0), (0.24, 0.1), (0.18, 0.3), (-0.02, 0.42)),
                 ((-0.02, 0.42), (0.2, 0.47), (0.26, 0.66), (0.1, 0.88), (-0.15, 0.98),
                  (-0.36, 0.97)))),
    # 4: open with a corner, open and round, in one stroke, closed, closed with a gap, like a 9
    Style(4, 3, (((-0.21, 0.05), (-0.28, 0.5)), ((-0.28, 0.5), (0.0, 0.5), (0.31, 0.47)),
                 ((0.19, 0.0), (0.15, 0.5), (0.12, 1.0)))),
    Style(4, 2, (((-0.24, 0.03), (-0.3, 0.3), (-0.2, 0.5), (0.05, 0.5), (0.33, 0.42)),
                 ((0.2, 0.0), (0.16, 0.5), (0.1, 1.0)))),
    Style(4, 2, (((-0.25, 0.02), (-0.3, 0.3), (-0.2, 0.49), (0.0, 0.5), (0.17, 0.36),
                  (0.23, 0.04)),
                 ((0.23, 0.04), (0.18, 0.5), (0.12, 1.0)))),
    Style(4, 1.2, (((0.14, 0.0), (-0.3, 0.62)), ((-0.3, 0.62), (0.36, 0.62)),
                   ((0.14, 0.0), (0.14, 0.5), (0.13, 1.0)))),
    Style(4, 1, (((0.06, 0.0), (-0.14, 0.3), (-0.3, 0.58)), ((-0.3, 0.58), (0.0, 0.58),
                 (0.34, 0.55)), ((0.16, 0.25), (0.12, 0.6), (0.08, 1.0)))),
    Style(4, 0.8, (((0.16, 0.06), (-0.05, 0.16), (-0.27, 0.42)), ((-0.27, 0.42), (-0.05, 0.5),
                   (0.2, 0.42)), ((0.2, 0.04), (0.17, 0.42), (0.12, 1.0)))),
    # 5: bar apart, in one stroke, curved like an S, bar floating off, small belly under a long bar
    Style(5, 3, (((-0.17, 0.03), (-0.22, 0.42)),
                 ((-0.22, 0.42), (0.0, 0.36), (0.21, 0.5), (0.25, 0.73), (0.1, 0.95),
                  (-0.12, 1.0), (-0.3, 0.9)),
                 ((-0.17, 0.03), (0.08, 0.02), (0.32, 0.0)))),
    Style(5, 2, (((0.3, 0.0), (0.05, 0.01), (-0.15, 0.03)), ((-0.15, 0.03), (-0.21, 0.41)),
                 ((-0.21, 0.41), (0.02, 0.38), (0.22, 0.55), (0.22, 0.8), (0.03, 0.99),
                  (-0.28, 0.95)))),
    Style(5, 2, (((0.32, 0.03), (0.06, 0.0), (-0.17, 0.12), (-0.17, 0.32), (0.02, 0.44),
                  (0.2, 0.6), (0.19, 0.83), (0.0, 0.99), (-0.29, 0.94)),)),
    Style(5, 1.5, (((-0.18, 0.1), (-0.2, 0.42)),
                   ((-0.2, 0.42), (0.03, 0.4), (0.18, 0.56), (0.17, 0.8), (0.0, 0.97),
                    (-0.28, 0.97)),
                   ((-0.08, 0.05), (0.12, 0.03), (0.36, 0.0)))),
    Style(5, 1, (((0.42, 0.0), (0.1, 0.03), (-0.1, 0.06)), ((-0.1, 0.06), (-0.18, 0.48)),
                 ((-0.18, 0.48), (0.02, 0.48), (0.13, 0.66), (0.06, 0.88), (-0.14, 1.0),
                  (-0.34, 0.94)))),
    # 6: bowed stem, straight stem, a small loop under a long bow, a loop that curls in
    Style(6, 3, (((0.16, 0.0), (-0.08, 0.2), (-0.24, 0.5), (-0.24, 0.82), (-0.04, 1.0),
                  (0.18, 0.93), (0.25, 0.73), (0.1, 0.57), (-0.1, 0.62), (-0.23, 0.78)),)),
    Style(6, 1.5, (((0.05, 0.0), (-0.1, 0.3), (-0.21, 0.62), (-0.17, 0.9), (0.02, 1.0),
                    (0.2, 0.88), (0.18, 0.66), (0.0, 0.58), (-0.19, 0.74)),)),
    Style(6, 1.5, (((0.28, 0.05), (0.08, 0.04), (-0.15, 0.25), (-0.27, 0.6), (-0.2, 0.9),
                    (0.02, 1.0), (0.2, 0.88), (0.18, 0.7), (0.0, 0.66), (-0.18, 0.82)),)),
    Style(6, 1.5, (((0.12, 0.0), (-0.15, 0.25), (-0.27, 0.62), (-0.18, 0.92), (0.06, 1.0),
                    (0.27, 0.84), (0.22, 0.62), (0.02, 0.55), (-0.12, 0.68), (-0.04, 0.8)),)),
    # 7: plain, with a serif, barred, wavy top, in one curve, upright stem
    Style(7, 3, (((-0.28, 0.04), (0.0, 0.02), (0.27, 0.0)), ((0.27, 0.0), (0.1, 0.45),
                 (-0.02, 1.0)))),
    Style(7, 1.5, (((-0.31, 0.2), (-0.27, 0.04)), ((-0.27, 0.04), (0.0, 0.03), (0.27, 0.0)),
                   ((0.27, 0.0), (0.12, 0.4), (0.0, 1.0)))),
    Style(7, 1.5, (((-0.28, 0.04), (0.0, 0.02), (0.27, 0.0)), ((0.27, 0.0), (0.1, 0.45),
                   (-0.04, 1.0)), ((-0.16, 0.52), (0.05, 0.5), (0.28, 0.48)))),
    Style(7, 1.5, (((-0.32, 0.16), (-0.18, 0.02), (0.04, 0.07), (0.27, 0.02)),
                   ((0.27, 0.02), (0.1, 0.45), (0.0, 1.0)))),
    Style(7, 1.5, (((-0.3, 0.1), (-0.05, 0.0), (0.21, 0.05), (0.22, 0.28), (0.08, 0.62),
                    (0.0, 1.0)),)),
    Style(7, 1, (((-0.3, 0.06), (-0.05, 0.05), (0.2, 0.02)), ((0.2, 0.02), (0.19, 0.5),
                 (0.14, 1.0)))),
    # 8: a figure of eight from the top, open at the top, two circles, begun in the middle
    Style(8, 3, (((0.19, 0.12), (0.0, 0.0), (-0.19, 0.11), (-0.16, 0.32), (0.03, 0.48),
                  (0.21, 0.68), (0.18, 0.91), (-0.02, 1.0), (-0.22, 0.9), (-0.21, 0.68),
                  (-0.01, 0.48), (0.18, 0.3), (0.2, 0.14)),)),
    Style(8, 2, (((0.24, 0.08), (0.02, 0.0), (-0.19, 0.1), (-0.15, 0.33), (0.05, 0.5),
                  (0.19, 0.7), (0.15, 0.93), (-0.05, 1.0), (-0.21, 0.87), (-0.15, 0.67),
                  (0.05, 0.46), (0.24, 0.22), (0.3, 0.06)),)),
    Style(8, 1, (((0.02, 0.01), (-0.16, 0.1), (-0.17, 0.32), (0.0, 0.44), (0.17, 0.33),
                  (0.17, 0.11), (0.0, 0.0)),
                 ((0.0, 0.44), (-0.2, 0.56), (-0.23, 0.84), (0.0, 1.0), (0.23, 0.84),
                  (0.2, 0.57), (0.02, 0.45)))),
    Style(8, 1, (((-0.02, 0.5), (-0.18, 0.33), (-0.15, 0.09), (0.04, 0.0), (0.2, 0.12),
                  (0.15, 0.34), (-0.02, 0.5), (-0.2, 0.72), (-0.17, 0.93), (0.04, 1.0),
                  (0.21, 0.88), (0.16, 0.66), (-0.02, 0.5)),)),
    # 9: straight stem, curved tail, in one curve, round loop on a short stem, open loop
    Style(9, 3, (((0.19, 0.14), (0.0, 0.0), (-0.21, 0.13), (-0.21, 0.36), (-0.02, 0.45),
                  (0.16, 0.32), (0.19, 0.14)),
                 ((0.19, 0.14), (0.17, 0.5), (0.1, 1.0)))),
    Style(9, 2, (((0.21, 0.14), (0.0, 0.0), (-0.22, 0.14), (-0.2, 0.38), (0.0, 0.46),
                  (0.17, 0.33), (0.21, 0.14)),
                 ((0.21, 0.14), (0.23, 0.6), (0.1, 0.92), (-0.1, 1.0), (-0.27, 0.9)))),
    Style(9, 2, (((0.2, 0.07), (-0.02, 0.01), (-0.22, 0.16), (-0.17, 0.4), (0.05, 0.38),
                  (0.2, 0.1), (0.19, 0.5), (0.06, 1.0)),)),
    Style(9, 1, (((0.22, 0.2), (0.02, 0.0), (-0.23, 0.15), (-0.2, 0.45), (0.02, 0.54),
                  (0.2, 0.4), (0.22, 0.2)),
                 ((0.22, 0.2), (0.2, 0.6), (0.05, 1.0)))),
    Style(9, 1, (((0.1, 0.02), (-0.12, 0.05), (-0.24, 0.27), (-0.13, 0.45), (0.06, 0.38),
                  (0.21, 0.12)),
                 ((0.21, 0.04), (0.17, 0.5), (0.1, 1.0)))),
)
# fmt: on
"""Every style, grouped by digit."""
