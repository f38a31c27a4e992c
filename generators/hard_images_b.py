"""Generator B of hard pictures: a pen that retraces the skeleton of a digit (the frozen one).

Nothing in the preprocessing may be tuned on what this file draws; `hard_images_a` is there for that. The
two share no code and no technique: here a digit becomes centre lines, drawn again by a round nib
with Pillow on a reflectance picture, lit, seen through a camera by inverse mapping, and recorded.

A kind is a function of (digit, rng) → picture, where ``digit`` is uint8 [28, 28] as in MNIST.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

__all__ = ["KINDS"]

Digit: TypeAlias = NDArray[np.uint8]
Float: TypeAlias = NDArray[np.float64]
Colour: TypeAlias = tuple[float, float, float]


# --- From pixels to pen strokes ------------------------------------------------------------------


def thin(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The one-pixel skeleton of ``mask`` (Zhang and Suen 1984, both passes until nothing falls)."""
    image = np.pad(mask, 1).astype(np.uint8)
    while True:
        removed = 0
        for odd in (False, True):
            north, south = np.roll(image, 1, 0), np.roll(image, -1, 0)
            ring = [
                north,
                np.roll(north, -1, 1),
                np.roll(image, -1, 1),
                np.roll(south, -1, 1),
                south,
                np.roll(south, 1, 1),
                np.roll(image, 1, 1),
                np.roll(north, 1, 1),
            ]
            count = sum(ring[1:], ring[0].copy())
            turns = sum(
                ((ring[i] == 0) & (ring[(i + 1) % 8] == 1)).astype(np.uint8) for i in range(8)
            )
            p2, p4, p6, p8 = ring[0], ring[2], ring[4], ring[6]
            corners = (
                (p2 * p4 * p8 == 0) & (p2 * p6 * p8 == 0)
                if odd
                else (p2 * p4 * p6 == 0) & (p4 * p6 * p8 == 0)
            )
            fall = (image == 1) & (count >= 2) & (count <= 6) & (turns == 1) & corners
            removed += int(fall.sum())
            image[fall] = 0
        if not removed:
            return image[1:-1, 1:-1].astype(bool)


@dataclass
class Strokes:
    """Centre lines of a digit: points [n, 2] as (x, y), longest side 1 around 0, and edges."""

    points: Float
    edges: list[tuple[int, int]]


def trace(digit: Digit, rng: np.random.Generator) -> Strokes:
    """The centre lines of a digit, smoothed along the line and shaken a little."""
    big = Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC)
    smooth = np.asarray(big.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64)
    skeleton = thin(smooth > 0.5 * smooth.max())
    rows, columns = np.nonzero(skeleton)
    index = {(int(r), int(c)): i for i, (r, c) in enumerate(zip(rows, columns, strict=True))}
    neighbours: list[list[int]] = [[] for _ in index]
    edges = []
    for (r, c), i in index.items():
        for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
            j = index.get((r + dr, c + dc))
            if j is None:
                continue
            # a diagonal beside two straight steps is the same line twice
            if dr and dc and ((r + dr, c) in index or (r, c + dc) in index):
                continue
            edges.append((i, j))
            neighbours[i].append(j)
            neighbours[j].append(i)
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    for _ in range(6):
        moved = points.copy()
        for i, near in enumerate(neighbours):
            if len(near) == 2:
                moved[i] = 0.5 * points[i] + 0.25 * (points[near[0]] + points[near[1]])
        points = moved
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / max(float((high - low).max()), 1.0)
    tilt = rng.normal(0, math.radians(3))
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    return Strokes(points @ turn.T, edges)


def pen(
    strokes: Strokes,
    shape: tuple[int, int],
    *,
    height: float,
    centre: tuple[float, float],
    width: float,
    pressure: float = 0.0,
    supersample: int = 3,
    rng: np.random.Generator,
) -> Float:
    """Coverage [h, w] in [0, 1] of a round nib that follows the strokes.

    ``height`` is the digit's longest side and ``width`` the nib's diameter, both in pixels;
    ``pressure`` is the relative change of the width along the line.
    """
    s = supersample if max(shape) < 1200 else 1
    canvas = Image.new("L", (shape[1] * s, shape[0] * s))
    draw = ImageDraw.Draw(canvas)
    xy = (strokes.points * height + np.asarray(centre)) * s
    phase, speed = rng.uniform(0, 6.28), rng.uniform(3, 8)
    swing = np.sin(phase + speed * (strokes.points[:, 0] + 1.7 * strokes.points[:, 1]))
    widths = np.maximum(width * (1 + pressure * swing), 0.7) * s
    for i, j in strokes.edges:
        draw.line([tuple(xy[i]), tuple(xy[j])], fill=255, width=max(1, round(float(widths[i]))))
    for (x, y), w in zip(xy, widths / 2, strict=True):
        if w >= 1:
            draw.ellipse([x - w, y - w, x + w, y + w], fill=255)
    if not strokes.edges:
        (x, y), w = xy[0], widths[0] / 2
        draw.ellipse([x - w, y - w, x + w, y + w], fill=255)
    if s > 1:
        canvas = canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(canvas, dtype=np.float64) / 255


# --- Paper, light, camera ------------------------------------------------------------------------


def value_noise(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> Float:
    """Smooth noise of mean 0 and deviation near 1 with features of ``cell`` pixels."""
    rows, columns = max(2, round(shape[0] / cell) + 1), max(2, round(shape[1] / cell) + 1)
    grid = Image.fromarray(rng.normal(size=(rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float64)


def paper(shape: tuple[int, int], colour: Colour, grain: float, rng: np.random.Generator) -> Float:
    """Reflectance [h, w, 3] of a sheet: a colour, fibres and a cloudy unevenness."""
    side = max(shape)
    texture = (
        0.5 * value_noise(shape, max(1.5, side / 250), rng)
        + 0.4 * value_noise(shape, max(3, side / 60), rng)
        + 0.4 * value_noise(shape, side / 8, rng)
    )
    return np.asarray(colour) * (1 + grain * texture[..., None])


def ink_over(surface: Float, coverage: Float, colour: Colour, opacity: float) -> Float:
    """Pigment laid over a surface."""
    alpha = (coverage * opacity)[..., None]
    return surface * (1 - alpha) + np.asarray(colour) * alpha


def lamp(shape: tuple[int, int], strength: float, rng: np.random.Generator) -> Float:
    """Illumination [h, w, 1] of a near lamp: inverse square of the distance, brightest at 1."""
    yy, xx = np.mgrid[0 : shape[0], 0 : shape[1]] / max(shape)
    angle = rng.uniform(0, 2 * math.pi)
    x, y = 0.5 + 0.8 * math.cos(angle), 0.5 + 0.8 * math.sin(angle)
    fall = 1 / (1 + strength * ((xx - x) ** 2 + (yy - y) ** 2))
    return np.asarray(fall / fall.max())[..., None]


def hand_shadow(shape: tuple[int, int], depth: float, rng: np.random.Generator) -> Float:
    """Illumination [h, w, 1] behind a soft-edged polygon that enters from one side."""
    h, w = shape
    mask = Image.new("L", (w, h))
    side = int(rng.integers(4))
    reach = rng.uniform(0.3, 0.75)
    ts = np.linspace(-0.1, 1.1, 9)
    edge = [(float(t), float(reach + 0.12 * rng.normal())) for t in ts]
    outline = [(ts[0], -0.2), *edge, (ts[-1], -0.2)]

    def place(along: float, depth: float) -> tuple[float, float]:
        across = depth if side % 2 == 0 else 1 - depth
        return (along * w, across * h) if side < 2 else (across * w, along * h)

    ImageDraw.Draw(mask).polygon([place(a, b) for a, b in outline], fill=255)
    soft = mask.filter(ImageFilter.GaussianBlur(max(shape) * rng.uniform(0.01, 0.06)))
    return (1 - depth * np.asarray(soft, np.float64) / 255)[..., None]


def camera(scene: Float, strength: float, rng: np.random.Generator) -> Float:
    """The scene seen from aside: a homography from four moved corners, edges repeated."""
    h, w = scene.shape[:2]
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
    moved = corners + rng.uniform(-strength, strength, (4, 2)) * (w, h)
    rows = []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, v])
    system = np.array(rows)
    a = np.append(np.linalg.solve(system[:, :8], system[:, 8]), 1).reshape(3, 3)
    yy, xx = np.mgrid[0:h, 0:w].astype(float)
    z = a[2, 0] * xx + a[2, 1] * yy + a[2, 2]
    sx = (a[0, 0] * xx + a[0, 1] * yy + a[0, 2]) / z
    sy = (a[1, 0] * xx + a[1, 1] * yy + a[1, 2]) / z
    seen = [
        ndimage.map_coordinates(scene[..., c], [sy, sx], order=1, mode="nearest") for c in range(3)
    ]
    return np.stack(seen, axis=-1)


def sensor(
    scene: Float,
    rng: np.random.Generator,
    *,
    exposure: float = 0.9,
    photons: float = 2000.0,
    blur: float = 0.6,
    quality: int | None = 85,
) -> Image.Image:
    """What a phone stores: lens blur, shot noise, tone curve, JPEG with subsampled colour."""
    light = np.clip(scene * exposure, 0, None)
    if blur:
        light = ndimage.gaussian_filter(light, (blur, blur, 0))
    light = rng.poisson(np.clip(light, 0, 4) * photons) / photons
    pixels = (np.clip(light, 0, 1) ** (1 / 1.1) * 255 + 0.5).astype(np.uint8)
    return jpeg(Image.fromarray(pixels), quality)


def jpeg(picture: Image.Image, quality: int | None) -> Image.Image:
    """The picture after JPEG compression, or as it is."""
    if quality is None:
        return picture
    store = io.BytesIO()
    picture.save(store, "JPEG", quality=quality)
    return Image.open(store)


T = TypeVar("T")

WHITE_PAPERS: list[Colour] = [(0.93, 0.93, 0.92), (0.95, 0.94, 0.90), (0.88, 0.89, 0.92)]
DARK_INKS: list[Colour] = [(0.05, 0.05, 0.06), (0.08, 0.10, 0.35), (0.10, 0.10, 0.12)]


def choose(options: list[T], rng: np.random.Generator) -> T:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def place(
    shape: tuple[int, int], share: float, rng: np.random.Generator, *, spread: float = 1.0
) -> tuple[float, tuple[float, float]]:
    """The digit's height for a ``share`` of the short side, and a centre that keeps it inside."""
    height = share * min(shape)
    margin = 0.56 * height
    x = shape[1] / 2 + spread * rng.uniform(-1, 1) * max(0.0, shape[1] / 2 - margin)
    y = shape[0] / 2 + spread * rng.uniform(-1, 1) * max(0.0, shape[0] / 2 - margin)
    return height, (x, y)


def written(
    digit: Digit,
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    share: float,
    nib: float,
    sheet: Float | None = None,
    ink: Colour | None = None,
    opacity: float = 0.92,
    spread: float = 0.5,
) -> Float:
    """A scene [h, w, 3]: one digit on a sheet; ``nib`` is the line's width over the height."""
    if sheet is None:
        sheet = paper(shape, choose(WHITE_PAPERS, rng), 0.012, rng)
    height, centre = place(shape, share, rng, spread=spread)
    coverage = pen(
        trace(digit, rng),
        shape,
        height=height,
        centre=centre,
        width=nib * height,
        pressure=0.2,
        rng=rng,
    )
    return ink_over(sheet, coverage, ink or choose(DARK_INKS, rng), opacity)


def lines(
    shape: tuple[int, int], spacing: float, thickness: float, angle: float, offset: float
) -> Float:
    """Coverage of parallel printed lines, antialiased by their distance."""
    yy, xx = np.mgrid[0 : shape[0], 0 : shape[1]].astype(float)
    across = -xx * math.sin(angle) + yy * math.cos(angle) + offset
    distance = np.abs((across + spacing / 2) % spacing - spacing / 2)
    return np.asarray(np.clip(thickness / 2 + 0.5 - distance, 0, 1))


# --- The kinds -----------------------------------------------------------------------------------


def clean(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Black pen on a white canvas: what the retracing alone costs."""
    shape = (200, 200)
    cover = pen(
        trace(digit, rng), shape, height=120, centre=(100, 100), width=14, pressure=0.1, rng=rng
    )
    return Image.fromarray((255 * (1 - cover) + 0.5).astype(np.uint8))


def photo_lamp(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Paper under a desk lamp that falls off across the frame."""
    shape = (int(rng.integers(300, 700)), int(rng.integers(300, 700)))
    scene = written(digit, rng, shape, share=rng.uniform(0.2, 0.7), nib=rng.uniform(0.05, 0.13))
    return sensor(scene * lamp(shape, rng.uniform(1, 5), rng), rng, blur=rng.uniform(0.4, 1.5))


def photo_shadow(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """The shadow of a hand or phone across the paper."""
    shape = (int(rng.integers(300, 600)), int(rng.integers(300, 600)))
    scene = written(digit, rng, shape, share=rng.uniform(0.25, 0.6), nib=rng.uniform(0.06, 0.13))
    light = hand_shadow(shape, rng.uniform(0.3, 0.6), rng) * lamp(shape, rng.uniform(0, 1.5), rng)
    return sensor(scene * light, rng, blur=rng.uniform(0.4, 1.2))


def ballpoint(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A thin blue or red pen of low contrast in a noisy picture."""
    shape = (int(rng.integers(220, 500)), int(rng.integers(220, 500)))
    ink = choose([(0.25, 0.32, 0.70), (0.75, 0.25, 0.30), (0.35, 0.30, 0.60)], rng)
    scene = written(
        digit, rng, shape, share=rng.uniform(0.25, 0.6), nib=rng.uniform(0.035, 0.07), ink=ink,
        opacity=rng.uniform(0.65, 0.9),
    )  # fmt: skip
    return sensor(scene, rng, exposure=rng.uniform(0.6, 0.95), photons=600)


def pencil(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Soft grey pencil that skips over the grain of the paper."""
    shape = (int(rng.integers(250, 500)), int(rng.integers(250, 500)))
    sheet = paper(shape, choose(WHITE_PAPERS, rng), 0.02, rng)
    height, centre = place(shape, rng.uniform(0.3, 0.65), rng, spread=0.5)
    cover = pen(
        trace(digit, rng), shape, height=height, centre=centre,
        width=rng.uniform(0.04, 0.08) * height, pressure=0.3, rng=rng,
    )  # fmt: skip
    grip = np.clip(0.75 + 0.35 * value_noise(shape, 2.0, rng), 0.1, 1)
    scene = ink_over(sheet, cover * grip, (0.35, 0.35, 0.36), 0.8)
    return sensor(scene * lamp(shape, rng.uniform(0, 1.5), rng), rng, photons=1200)


def ruled(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A ruled exercise book; the digit stands on or across the lines."""
    shape = (int(rng.integers(300, 600)), int(rng.integers(300, 600)))
    sheet = paper(shape, choose(WHITE_PAPERS, rng), 0.01, rng)
    share = rng.uniform(0.3, 0.6)
    spacing = share * min(shape) * rng.uniform(0.5, 1.3)
    cover = lines(shape, spacing, rng.uniform(1, 2.5), rng.normal(0, 0.03), rng.uniform(0, spacing))
    colour = choose([(0.45, 0.60, 0.85), (0.6, 0.6, 0.65), (0.35, 0.40, 0.55)], rng)
    sheet = ink_over(sheet, cover, colour, rng.uniform(0.5, 0.9))
    scene = written(digit, rng, shape, share=share, nib=rng.uniform(0.06, 0.11), sheet=sheet)
    return sensor(scene * lamp(shape, rng.uniform(0, 1.5), rng), rng)


def squared(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Squared paper with cells about half as high as the digit."""
    shape = (int(rng.integers(300, 600)), int(rng.integers(300, 600)))
    sheet = paper(shape, choose(WHITE_PAPERS, rng), 0.01, rng)
    share = rng.uniform(0.3, 0.6)
    spacing = share * min(shape) * rng.uniform(0.35, 0.8)
    tilt, thickness = rng.normal(0, 0.03), rng.uniform(1, 2)
    across = lines(shape, spacing, thickness, tilt, rng.uniform(0, spacing))
    upright = lines(shape, spacing, thickness, tilt + math.pi / 2, rng.uniform(0, spacing))
    colour = choose([(0.55, 0.65, 0.85), (0.65, 0.65, 0.68), (0.5, 0.7, 0.6)], rng)
    sheet = ink_over(sheet, np.maximum(across, upright), colour, rng.uniform(0.4, 0.8))
    scene = written(digit, rng, shape, share=share, nib=rng.uniform(0.07, 0.12), sheet=sheet)
    return sensor(scene * lamp(shape, rng.uniform(0, 1), rng), rng)


def strong_jpeg(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A small picture compressed until the blocks show."""
    shape = (int(rng.integers(80, 200)),) * 2
    scene = written(digit, rng, shape, share=rng.uniform(0.4, 0.8), nib=rng.uniform(0.08, 0.14))
    return sensor(scene, rng, quality=int(rng.integers(8, 25)))


def defocus(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Out of focus, or moved while the shutter was open."""
    shape = (int(rng.integers(200, 450)),) * 2
    share = rng.uniform(0.3, 0.6)
    scene = written(digit, rng, shape, share=share, nib=rng.uniform(0.08, 0.13))
    height = share * shape[0]
    if rng.random() < 0.5:
        size = max(2, round(height * rng.uniform(0.03, 0.09)))
        scene = ndimage.uniform_filter1d(scene, size, axis=int(rng.integers(2)))
    return sensor(scene, rng, blur=height * rng.uniform(0.015, 0.04))


def perspective(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Photographed from aside, with a lamp."""
    shape = (int(rng.integers(300, 600)), int(rng.integers(300, 600)))
    scene = written(
        digit, rng, shape, share=rng.uniform(0.3, 0.55), nib=rng.uniform(0.06, 0.13), spread=0.3
    )
    return sensor(camera(scene * lamp(shape, rng.uniform(0, 3), rng), 0.12, rng), rng)


def tiny(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A thumbnail of 20 to 40 pixels."""
    big = written(digit, rng, (240, 240), share=rng.uniform(0.7, 0.95), nib=rng.uniform(0.08, 0.14))
    side = int(rng.integers(20, 41))
    picture = sensor(big, rng, quality=None)
    return jpeg(picture.resize((side, side), Image.Resampling.BOX), choose([None, 90], rng))


def huge(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A phone picture of 2000 to 3000 pixels, digit small or large in it."""
    width = int(rng.integers(2000, 3001))
    shape = (round(width * 0.75), width)
    scene = written(digit, rng, shape, share=rng.uniform(0.12, 0.6), nib=rng.uniform(0.05, 0.12))
    return sensor(scene * lamp(shape, rng.uniform(0.5, 3), rng), rng, blur=2.0, photons=500)


def off_centre(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A small digit anywhere on a large sheet, with dust."""
    shape = (int(rng.integers(400, 800)), int(rng.integers(400, 800)))
    scene = written(
        digit, rng, shape, share=rng.uniform(0.08, 0.2), nib=rng.uniform(0.08, 0.14), spread=1.0
    )
    for _ in range(int(rng.integers(0, 6))):
        y, x = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        scene[y : y + 2, x : x + 2] *= 0.5
    return sensor(scene * lamp(shape, rng.uniform(0, 2), rng), rng)


def tight_crop(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Cut exactly along the ink, dark on light."""
    shape = (220, 220)
    cover = pen(
        trace(digit, rng), shape, height=rng.uniform(60, 150), centre=(110, 110),
        width=rng.uniform(8, 16), pressure=0.15, rng=rng,
    )  # fmt: skip
    rows, columns = np.nonzero(cover > 0.3)
    left, top = int(columns.min()), int(rows.min())
    box = (left, top, int(columns.max()) + 1, int(rows.max()) + 1)
    sheet = paper(shape, choose(WHITE_PAPERS, rng), 0.01, rng)
    picture = sensor(ink_over(sheet, cover, choose(DARK_INKS, rng), 0.95), rng, quality=None)
    return jpeg(picture.crop(box), 90)


def mnist_black(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """The 28×28 image itself."""
    del rng
    return Image.fromarray(digit)


def mnist_white(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """The 28×28 image as black on white."""
    del rng
    return ImageOps.invert(Image.fromarray(digit))


def transparent(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A transparent canvas: all of the drawing is in the alpha channel."""
    side = int(rng.integers(100, 500))
    height, centre = place((side, side), rng.uniform(0.4, 0.85), rng)
    cover = pen(
        trace(digit, rng), (side, side), height=height, centre=centre,
        width=height * rng.uniform(0.03, 0.14), rng=rng,
    )  # fmt: skip
    colour = choose([(0, 0, 0), (255, 255, 255), (30, 60, 200), (200, 20, 40)], rng)
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = colour if rng.random() < 0.5 else np.where(cover[..., None] > 0, colour, 0)
    pixels[..., 3] = (cover * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(pixels)


def coloured_paper(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Sticky notes and coloured card, with a pen that is sometimes coloured too."""
    shape = (int(rng.integers(200, 500)),) * 2
    note, ink = choose(
        [
            ((0.95, 0.85, 0.30), (0.10, 0.12, 0.45)),
            ((0.90, 0.55, 0.60), (0.10, 0.10, 0.12)),
            ((0.50, 0.75, 0.50), (0.60, 0.10, 0.15)),
            ((0.45, 0.65, 0.85), (0.70, 0.12, 0.20)),
            ((0.75, 0.60, 0.42), (0.15, 0.12, 0.10)),
        ],
        rng,
    )
    scene = written(
        digit, rng, shape, share=rng.uniform(0.3, 0.7), nib=rng.uniform(0.06, 0.14),
        sheet=paper(shape, note, 0.02, rng), ink=ink,
    )  # fmt: skip
    return sensor(scene * lamp(shape, rng.uniform(0, 2.5), rng), rng)


def chalkboard(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Chalk on a smeared dark board."""
    shape = (int(rng.integers(250, 600)), int(rng.integers(250, 600)))
    board = paper(shape, choose([(0.12, 0.22, 0.17), (0.13, 0.14, 0.15)], rng), 0.06, rng)
    board = board + 0.035 * np.clip(value_noise(shape, max(shape) / 5, rng), 0, 3)[..., None]
    height, centre = place(shape, rng.uniform(0.3, 0.7), rng, spread=0.5)
    cover = pen(
        trace(digit, rng), shape, height=height, centre=centre,
        width=rng.uniform(0.05, 0.11) * height, pressure=0.25, rng=rng,
    )  # fmt: skip
    crumbs = np.clip(0.8 + 0.4 * value_noise(shape, 1.8, rng), 0, 1)
    scene = ink_over(board, cover * crumbs, (0.85, 0.86, 0.82), 0.85)
    return sensor(scene * lamp(shape, rng.uniform(0, 2), rng), rng)


def whiteboard(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A coloured marker on a whiteboard that mirrors a window."""
    shape = (int(rng.integers(300, 600)), int(rng.integers(300, 600)))
    ink = choose([(0.05, 0.05, 0.07), (0.75, 0.1, 0.1), (0.1, 0.45, 0.25), (0.1, 0.15, 0.6)], rng)
    scene = written(
        digit, rng, shape, share=rng.uniform(0.3, 0.6), nib=rng.uniform(0.06, 0.12),
        sheet=paper(shape, (0.78, 0.80, 0.80), 0.004, rng), ink=ink, opacity=0.85,
    )  # fmt: skip
    glare = 0.25 * np.clip(value_noise(shape, max(shape) / 3, rng), 0, 2)[..., None]
    return sensor(scene * lamp(shape, rng.uniform(0, 1.5), rng) + glare, rng, exposure=0.85)


def mouse(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Drawn with a mouse: jerky, one to three pixels wide, without antialiasing."""
    side = int(rng.integers(120, 420))
    strokes = trace(digit, rng)
    strokes.points = strokes.points + 0.012 * rng.normal(size=strokes.points.shape)
    height, centre = place((side, side), rng.uniform(0.4, 0.8), rng)
    cover = pen(
        strokes, (side, side), height=height, centre=centre,
        width=int(rng.integers(1, 4)), supersample=1, rng=rng,
    )  # fmt: skip
    picture = Image.fromarray(np.where(cover > 0.3, 0, 255).astype(np.uint8))
    return picture.convert("P") if rng.random() < 0.3 else picture


def tablet(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A thick round brush on a drawing app's canvas, light or dark theme."""
    side = int(rng.integers(150, 600))
    height, centre = place((side, side), rng.uniform(0.45, 0.85), rng)
    cover = pen(
        trace(digit, rng), (side, side), height=height, centre=centre,
        width=height * rng.uniform(0.12, 0.24), pressure=0.05, rng=rng,
    )  # fmt: skip
    back, front = choose([(255, 0), (0, 255), (240, 40), (30, 220), (250, 110)], rng)
    return Image.fromarray((back + (front - back) * cover + 0.5).astype(np.uint8))


def scan(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A scan: grey noise, specks of toner, a dark rim where the sheet ends; often 1-bit."""
    shape = (int(rng.integers(150, 400)), int(rng.integers(150, 400)))
    scene = written(digit, rng, shape, share=rng.uniform(0.35, 0.7), nib=rng.uniform(0.06, 0.13))
    grey = scene.mean(axis=-1) + 0.04 * rng.normal(size=shape)
    specks = rng.random(shape) < 0.0012
    grey[ndimage.binary_dilation(specks, iterations=int(rng.integers(1, 3)))] = 0.15
    rim = int(rng.integers(0, 8))
    if rim:
        grey[:, -rim:] = 0.2
        grey[: rim // 2, :] = 0.25
    picture = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.4:
        return picture.point(lambda v: 255 if v > 140 else 0).convert("1")
    return picture


def desk(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """A sheet that lies askew on a wooden desk, with its edges in the frame."""
    h, w = int(rng.integers(350, 650)), int(rng.integers(350, 650))
    grainy = np.sin(
        np.mgrid[0:h, 0:w][0] / rng.uniform(3, 9) + 2 * value_noise((h, w), max(h, w) / 3, rng)
    )
    wood = choose([(0.40, 0.26, 0.16), (0.25, 0.22, 0.20), (0.62, 0.47, 0.33)], rng)
    table = np.asarray(wood) * (1 + 0.1 * grainy[..., None])
    sheet = Image.new("L", (w, h))
    inset = rng.uniform(0.02, 0.2, (4, 2)) * (w, h)
    corners = [(inset[0, 0], inset[0, 1]), (w - inset[1, 0], inset[1, 1]),
               (w - inset[2, 0], h - inset[2, 1]), (inset[3, 0], h - inset[3, 1])]  # fmt: skip
    if rng.random() < 0.5:
        cut = int(rng.integers(4))
        corners[cut] = (corners[cut][0] + (w if cut in (1, 2) else -w), corners[cut][1])
    ImageDraw.Draw(sheet).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    on_sheet = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.8)), np.float64)[..., None] / 255
    page = written(
        digit, rng, (h, w), share=rng.uniform(0.2, 0.4), nib=rng.uniform(0.07, 0.13), spread=0.12
    )
    scene = page * on_sheet + table * (1 - on_sheet)
    return sensor(scene * lamp((h, w), rng.uniform(0, 2.5), rng), rng)


def deep_modes(digit: Digit, rng: np.random.Generator) -> Image.Image:
    """Unusual encodings: 16 bits, CMYK, palette, grey with alpha, or turned by EXIF."""
    shape = (int(rng.integers(120, 300)),) * 2
    scene = written(digit, rng, shape, share=rng.uniform(0.4, 0.7), nib=rng.uniform(0.07, 0.13))
    picture = sensor(scene, rng, quality=None)
    form = int(rng.integers(5))
    if form == 0:
        deep = np.asarray(picture.convert("L"), np.uint16) * int(rng.integers(60, 257))
        return Image.fromarray(deep)
    if form == 1:
        return picture.convert("CMYK")
    if form == 2:
        return picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    if form == 3:
        return picture.convert("LA")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    store, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    turned.save(store, "JPEG", exif=exif, quality=90)
    return Image.open(store)


KINDS: dict[str, Callable[[Digit, np.random.Generator], Image.Image]] = {
    kind.__name__: kind
    for kind in (
        clean, photo_lamp, photo_shadow, ballpoint, pencil, ruled, squared, strong_jpeg, defocus,
        perspective, tiny, huge, off_centre, tight_crop, mnist_black, mnist_white, transparent,
        coloured_paper, chalkboard, whiteboard, mouse, tablet, scan, desk, deep_modes,
    )
}  # fmt: skip
