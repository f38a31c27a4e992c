"""Drawings of digits in handwriting styles of many countries, to measure on, apart from `mnist_ce`.

A digit is lines and elliptic arcs in the unit square, each placed and bent a little differently,
drawn with a pen, a brush, or a mouse's one-pixel line, dark on light. Nothing here is trained or
tuned on; `tests/test_benchmarks.py` pins the digest of this source.

A style in `STYLES` is a function of a random generator → strokes, and its name begins with its
digit; `draw` makes an image of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["PENS", "STYLES", "draw"]

Rng: TypeAlias = np.random.Generator
Stroke: TypeAlias = NDArray[np.float64]  # [points, 2], x to the right and y down
Strokes: TypeAlias = list[Stroke]
PENS = ("pen", "brush", "mouse")


def line(x: float, y: float, x2: float, y2: float, bow: float = 0.0) -> Stroke:
    """A line that bows out to its left, as seen along it, by a share of its length."""
    t = np.linspace(0, 1, 24)[:, None]
    start, way = np.array([x, y]), np.array([x2 - x, y2 - y])
    points: Stroke = start + t * way + 4 * bow * t * (1 - t) * np.array([way[1], -way[0]])
    return points


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """A part of an ellipse, in degrees: 0 is right, 90 is down; backwards where end < start."""
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def join(*parts: Stroke) -> Stroke:
    """One stroke through all parts."""
    return np.concatenate(parts)


def u(rng: Rng, low: float, high: float) -> float:
    """A number drawn uniformly."""
    return float(rng.uniform(low, high))


def stem(rng: Rng) -> Stroke:
    """The stem of a 1."""
    return line(0.6, 0, 0.6 + u(rng, -0.08, 0.08), 1, u(rng, -0.03, 0.03))


def upstroke(rng: Rng, length: tuple[float, float], angle: tuple[float, float]) -> Stroke:
    """A stroke up to the top of a 1; the angle is measured from the horizontal."""
    size, slope = u(rng, *length), math.radians(u(rng, *angle))
    left, top = size * math.cos(slope), size * math.sin(slope)
    return line(0.6 - left, top, 0.6, 0, u(rng, -0.1, 0.06))


def foot(rng: Rng) -> Stroke:
    """The foot of a 1."""
    return line(0.6 - u(rng, 0.15, 0.36), 1 + u(rng, -0.02, 0.02), 0.6 + u(rng, 0.15, 0.36), 1)


def one_slanted(rng: Rng) -> Strokes:
    """A bare stroke that leans to the right."""
    return [line(0.5 + u(rng, 0.15, 0.5), 0, 0.5 - u(rng, 0, 0.2), 1, u(rng, -0.04, 0.04))]


def seven(rng: Rng, hook: bool, bar: bool, round_corner: bool = False) -> Strokes:
    """A 7 with a hook at the left of its top, a bar through its stem, a rounded corner, or none."""
    left, y, bottom = u(rng, 0.05, 0.2), u(rng, -0.02, 0.05), u(rng, 0.25, 0.55)
    if round_corner:
        top = join(line(left, y, 0.66, 0), arc(0.66, 0.16, 0.18, 0.16, -90, 10))
        strokes = [join(top, line(0.84, 0.19, bottom, 1, u(rng, -0.06, 0.02)))]
    else:
        strokes = [line(left, y, 0.85, 0), line(0.85, 0, bottom, 1, u(rng, -0.08, 0.03))]
    if hook:
        strokes.append(line(left - u(rng, -0.02, 0.05), y + u(rng, 0.12, 0.26), left, y))
    if bar:
        middle, y = 0.45 + bottom / 4 + u(rng, -0.05, 0.05), u(rng, 0.42, 0.6)
        strokes.append(
            line(middle - u(rng, 0.18, 0.28), y + u(rng, 0, 0.05), middle + u(rng, 0.18, 0.28), y)
        )
    return strokes


def nine(rng: Rng, tail: str) -> Strokes:
    """A 9 whose tail is straight, curled, or bent to the left."""
    ry = u(rng, 0.2, 0.27)
    bowl = arc(0.5, ry, u(rng, 0.26, 0.34), ry, -20, -380 - u(rng, 0, 10))
    x, y = float(bowl[-1, 0]), float(bowl[-1, 1])
    if tail == "straight":
        return [join(bowl, line(x, y, x - u(rng, 0, 0.15), 1, u(rng, -0.02, 0.04)))]
    low = u(rng, 0.66, 0.76)
    end = u(rng, 150, 190) if tail == "curled" else u(rng, 80, 120)
    radius = (x - 0.12) / 2 if tail == "curled" else x - 0.2
    return [join(bowl, line(x, y, x, low), arc(x - radius, low, radius, 1 - low, 0, end))]


def four_open(rng: Rng) -> Strokes:
    """An open 4: a corner or a bow, and an upright."""
    y = u(rng, 0.5, 0.66)
    left, right = u(rng, 0.05, 0.14), u(rng, 0.84, 1.0)
    down = line(u(rng, 0.14, 0.34), u(rng, 0, 0.1), left, y, u(rng, -0.02, 0.06))
    upright = u(rng, 0.6, 0.72)
    return [
        join(down, line(left, y, right, y - u(rng, -0.02, 0.05))),
        line(upright, u(rng, 0, 0.28), upright - u(rng, 0, 0.1), 1),
    ]


def four_closed(rng: Rng) -> Strokes:
    """A closed 4, in one stroke or two."""
    top, y = u(rng, 0.58, 0.7), u(rng, 0.58, 0.72)
    base = line(u(rng, 0.02, 0.12), y, u(rng, 0.85, 1.0), y + u(rng, -0.03, 0.02))
    side = line(top, 0, float(base[0, 0]), y)
    return [join(side, base), line(top, u(rng, 0, 0.03), top - u(rng, -0.02, 0.06), 1)]


def zero(rng: Rng, slash: str) -> Strokes:
    """A 0, without a slash, with one that ends within or one that sticks out."""
    start = u(rng, -130, -60)
    strokes = [arc(0.5, 0.5, u(rng, 0.34, 0.46), 0.5, start, start - u(rng, 352, 380))]
    if slash == "within":
        reach = u(rng, 0.16, 0.24)
        strokes.append(line(0.5 + reach, 0.5 - 1.3 * reach, 0.5 - reach, 0.5 + 1.3 * reach))
    if slash == "out":
        reach = u(rng, 0.36, 0.5)
        strokes.append(line(0.5 + reach, 0.5 - 1.1 * reach, 0.5 - reach, 0.5 + 1.1 * reach))
    return strokes


def two(rng: Rng, foot: str) -> Strokes:
    """A 2 whose foot is flat, wavy, or hangs on a loop."""
    head = arc(0.47, 0.27, u(rng, 0.3, 0.38), 0.27, u(rng, -185, -160), 25)
    x, y = (float(v) for v in head[-1])
    if foot == "loop":
        down = line(x, y, 0.26, 0.92, -0.03)
        loop = arc(0.16, 0.88, 0.13, u(rng, 0.08, 0.12), 50, 290)
        return [join(head, down, loop, line(0.22, 0.79, u(rng, 0.85, 1.0), 0.97, 0.08))]
    down = line(x, y, u(rng, 0.05, 0.14), 0.97, -0.05)
    end = line(float(down[-1, 0]), 0.97, u(rng, 0.8, 1.0), 0.97 + u(rng, -0.05, 0.02))
    if foot == "wavy":
        end[:, 1] -= 0.07 * np.sin(np.linspace(0, 2 * np.pi, len(end)))
    return [join(head, down, end)]


def three(rng: Rng, flat: bool) -> Strokes:
    """A 3 with a round or a flat top."""
    waist = u(rng, 0.42, 0.48)
    low = arc(0.46, (1 + waist) / 2, u(rng, 0.34, 0.42), (1 - waist) / 2, -90, u(rng, 130, 160))
    if flat:
        return [join(line(u(rng, 0.1, 0.2), 0.01, 0.8, 0), line(0.8, 0, 0.44, waist), low)]
    high = arc(0.46, waist / 2, u(rng, 0.28, 0.36), waist / 2, u(rng, -165, -140), 90)
    return [join(high, low)]


def five(rng: Rng, apart: bool) -> Strokes:
    """A 5, its bar joined or apart."""
    top, left = u(rng, 0.02, 0.08), u(rng, 0.16, 0.24)
    belly = arc(0.42, 0.69, u(rng, 0.36, 0.44), 0.31, -130, u(rng, 120, 150))
    body = join(line(left, top, float(belly[0, 0]), float(belly[0, 1])), belly)
    start = left + (u(rng, 0.1, 0.22) if apart else 0)
    height = top - (u(rng, -0.02, 0.1) if apart else 0)
    return [body, line(start, height, u(rng, 0.75, 0.95), height + u(rng, -0.05, 0.03))]


def six(rng: Rng, wide: bool) -> Strokes:
    """A 6 with a narrow or a wide bow."""
    height = u(rng, 0.48, 0.62) if wide else u(rng, 0.4, 0.52)
    rx = u(rng, 0.38, 0.48) if wide else u(rng, 0.24, 0.32)
    top = u(rng, 0.55, 0.9) if wide else u(rng, 0.4, 0.7)
    bow = u(rng, 0.12, 0.2) if wide else u(rng, 0.04, 0.12)
    down = line(top, 0, 0.5 - rx, 1 - height / 2, -bow)
    return [join(down, arc(0.5, 1 - height / 2, rx, height / 2, 180, -185 - u(rng, 0, 20)))]


def eight(rng: Rng, circles: bool) -> Strokes:
    """An 8 of one stroke or of two circles."""
    waist = u(rng, 0.4, 0.5)
    rx, below = u(rng, 0.24, 0.32), u(rng, 0.3, 0.4)
    centres = waist / 2, (1 + waist) / 2
    if circles:
        start, gap = u(rng, -120, -60), u(rng, -0.02, 0.02)
        shift = u(rng, -0.05, 0.05)
        upper = arc(0.5 + shift, centres[0] - gap, rx, waist / 2, start, start - u(rng, 355, 375))
        lower = arc(0.5, centres[1], below, (1 - waist) / 2, start, start - u(rng, 355, 375))
        return [upper, lower]
    begin = u(rng, -70, -30)
    return [
        join(
            arc(0.5, centres[0], rx, waist / 2, begin, -270),
            arc(0.5, centres[1], below, (1 - waist) / 2, -90, 270),
            arc(0.5, centres[0], rx, waist / 2, 90, begin - u(rng, -5, 20)),
        )
    ]


STYLES: dict[str, Callable[[Rng], Strokes]] = {
    "0 plain": lambda rng: zero(rng, ""),
    "0 slash within": lambda rng: zero(rng, "within"),
    "0 slash out": lambda rng: zero(rng, "out"),
    "1 bare": lambda rng: [stem(rng)],
    "1 slanted": one_slanted,
    "1 short upstroke": lambda rng: [upstroke(rng, (0.15, 0.28), (30, 65)), stem(rng)],
    "1 upstroke": lambda rng: [upstroke(rng, (0.28, 0.5), (35, 65)), stem(rng)],
    "1 flat upstroke": lambda rng: [upstroke(rng, (0.25, 0.45), (25, 40)), stem(rng)],
    "1 long upstroke": lambda rng: [upstroke(rng, (0.5, 0.8), (45, 70)), stem(rng)],
    "1 caret": lambda rng: [upstroke(rng, (0.8, 1.05), (55, 72)), stem(rng)],
    "1 foot": lambda rng: [stem(rng), foot(rng)],
    "1 upstroke and foot": lambda rng: [upstroke(rng, (0.2, 0.6), (35, 62)), stem(rng), foot(rng)],
    "2 plain": lambda rng: two(rng, "flat"),
    "2 wavy": lambda rng: two(rng, "wavy"),
    "2 loop": lambda rng: two(rng, "loop"),
    "3 round": lambda rng: three(rng, flat=False),
    "3 flat": lambda rng: three(rng, flat=True),
    "4 open": four_open,
    "4 closed": four_closed,
    "5 plain": lambda rng: five(rng, apart=False),
    "5 bar apart": lambda rng: five(rng, apart=True),
    "6 narrow": lambda rng: six(rng, wide=False),
    "6 wide bow": lambda rng: six(rng, wide=True),
    "7 bare": lambda rng: seven(rng, hook=False, bar=False),
    "7 round": lambda rng: seven(rng, hook=False, bar=False, round_corner=True),
    "7 bar": lambda rng: seven(rng, hook=False, bar=True),
    "7 hook": lambda rng: seven(rng, hook=True, bar=False),
    "7 hook and bar": lambda rng: seven(rng, hook=True, bar=True),
    "8 one stroke": lambda rng: eight(rng, circles=False),
    "8 two circles": lambda rng: eight(rng, circles=True),
    "9 straight": lambda rng: nine(rng, "straight"),
    "9 curled": lambda rng: nine(rng, "curled"),
    "9 bent": lambda rng: nine(rng, "bent"),
}


def draw(style: str, pen: str, rng: Rng) -> Image.Image:
    """Draw a digit on light paper, grey [height, width], about 60 to 260 pixels high.

    `style` is a key of `STYLES`, `pen` one of `PENS`.
    """
    side = u(rng, 120, 260) if pen != "mouse" else u(rng, 60, 200)
    shares = {"pen": u(rng, 0.04, 0.11), "brush": u(rng, 0.13, 0.2), "mouse": 0.0}
    width = max(1, round(side * shares[pen]))
    aspect, slant = u(rng, 0.55, 0.95), u(rng, -0.12, 0.4)
    turn = math.radians(u(rng, -7, 7))
    phases, waves = rng.uniform(0, 2 * np.pi, 2), rng.uniform(-0.02, 0.02, 2)
    ink, paper = round(u(rng, 0, 90)), round(u(rng, 190, 255))
    strokes = []
    for stroke in STYLES[style](rng):
        x, y = (stroke + rng.normal(0, 0.012, 2)).T
        x, y = x + waves[0] * np.sin(5 * y + phases[0]), y + waves[1] * np.sin(5 * x + phases[1])
        x = (x - 0.5) * aspect - (y - 0.5) * slant
        y = y - 0.5
        rotated = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        strokes.append(np.stack(rotated, axis=1))
    low = np.min([s.min(axis=0) for s in strokes], axis=0)
    high = np.max([s.max(axis=0) for s in strokes], axis=0)
    margin = width + side * u(rng, 0.15, 0.5)
    fine = 1 if pen == "mouse" else 3  # a mouse's line is not antialiased
    size = [round(float(v)) * fine for v in (high - low) * side + 2 * margin]
    image = Image.new("L", (size[0], size[1]), paper)
    canvas = ImageDraw.Draw(image)
    for stroke in strokes:
        points = ((stroke - low) * side + margin) * fine
        pen_width = width * fine
        canvas.line([(float(a), float(b)) for a, b in points], fill=ink, width=pen_width)
        if pen_width > 2:
            radius = pen_width / 2
            for a, b in points:
                canvas.ellipse((a - radius, b - radius, a + radius, b + radius), fill=ink)
    return image.resize((size[0] // fine, size[1] // fine), Image.Resampling.BOX)
