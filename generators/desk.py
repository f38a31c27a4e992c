"""A page photographed on a desk: dark, grained or patterned surroundings, objects, perspective."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from generators.hard_images_a import cloud, light

Rng = np.random.Generator
Float = NDArray[np.float64]
SURFACES = ("even", "wood", "boards", "checks", "stripes", "speckled", "light")
COLOURS = (
    (0.16, 0.14, 0.13),
    (0.42, 0.27, 0.16),
    (0.55, 0.42, 0.28),
    (0.3, 0.32, 0.36),
    (0.12, 0.2, 0.33),
    (0.35, 0.14, 0.13),
    (0.22, 0.3, 0.2),
)


def surface(kind: str, shape: tuple[int, int], rng: Rng) -> Float:
    """Return the desk without anything on it, [h, w, 3]."""
    height, width = shape
    colour = np.array(COLOURS[rng.integers(len(COLOURS))]) * rng.uniform(0.7, 1.3)
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    pattern = 0.05 * cloud(shape, 1.0, rng)
    if kind == "wood":
        period = max(shape) * rng.uniform(0.01, 0.04)
        pattern += 0.12 * np.sin(2 * np.pi * (across / period + 1.5 * cloud(shape, 1.6, rng)))
    elif kind == "boards":
        pattern -= 0.6 * (across % (max(shape) * rng.uniform(0.1, 0.25)) < max(shape) * 0.006)
    elif kind in ("checks", "stripes"):
        period = max(shape) * rng.uniform(0.04, 0.12)
        bands = (across % period < period / 2) * 1.0
        if kind == "checks":
            bands = (bands + (along % period < period / 2)) / 2
        pattern += rng.uniform(0.2, 0.9) * (bands - 0.5)
    elif kind == "speckled":
        pattern += rng.uniform(0.1, 0.4) * cloud(shape, 0.5, rng)
    elif kind == "light":
        colour = np.array(rng.uniform(0.5, 0.68)) * np.array([1.0, rng.uniform(0.9, 1), 0.9])
    return np.clip(colour * (1 + pattern)[..., None], 0, 1)


def coefficients(source: Float, target: Float) -> list[float]:
    """Return Pillow's eight coefficients that take corners [4, 2] of the target to the source."""
    rows, values = [], []
    for (u, v), (x, y) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return list(np.linalg.solve(np.array(rows), np.array(values)))


def on_desk(page: Image.Image, rng: Rng, max_turn: float = 14.0) -> Image.Image:
    """Return a photograph of a page that lies on a desk, with all four of its edges in view."""
    width, height = page.size
    margins = rng.uniform(0.08, 0.45, 4) * max(width, height)  # left, top, right, bottom
    shape = (round(height + margins[1] + margins[3]), round(width + margins[0] + margins[2]))
    kind = SURFACES[rng.integers(len(SURFACES))]
    desk = Image.fromarray((255 * surface(kind, shape, rng)).astype(np.uint8))
    pen = ImageDraw.Draw(desk)
    if rng.random() < 0.4:  # an object that the picture cuts: a cup, a phone, another sheet
        x, y = rng.choice([0.0, 1.0]) * shape[1], rng.uniform(0, 1) * shape[0]
        radius = rng.uniform(0.03, 0.12) * max(shape)
        level = tuple(int(v) for v in rng.integers(20, 230, 3))
        if rng.random() < 0.5:
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=level)
        else:
            pen.rectangle([x - radius, y - 2 * radius, x + radius, y + radius], fill=level)
    # Corners of the page in the photograph: turned, and seen from aside.
    angle = np.radians(rng.uniform(-max_turn, max_turn))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
    centre = np.array([width / 2, height / 2])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shrink = 1 / (abs(np.cos(angle)) + abs(np.sin(angle)) * 0.6)
    seen = (corners - centre) @ turn.T * shrink + centre + margins[:2]
    narrowing = rng.uniform(0, 0.16) * width / 2 * np.array([[1, 0], [-1, 0]])
    seen[:2] += narrowing  # the far edge is shorter
    seen += rng.normal(0, 0.012 * max(width, height), seen.shape)
    size = (shape[1], shape[0])
    back = coefficients(corners, seen)
    method = Image.Transform.PERSPECTIVE
    flat = page.convert("RGB").transform(size, method, back, Image.Resampling.BICUBIC)
    cover = Image.new("L", page.size, 255).transform(size, method, back, Image.Resampling.BILINEAR)
    shadow = ndimage.gaussian_filter(np.asarray(cover, float) / 255, 0.012 * max(shape))
    shift = rng.normal(0, 0.012 * max(shape), 2)
    shade = 1 - rng.uniform(0.1, 0.6) * ndimage.shift(shadow, shift, order=1)
    desk = Image.fromarray((np.asarray(desk) * shade[..., None]).astype(np.uint8))
    desk.paste(flat, mask=cover)
    if rng.random() < 0.25:  # a pencil across an edge of the page
        middle = (seen[1] + seen[2]) / 2 if rng.random() < 0.5 else (seen[2] + seen[3]) / 2
        reach = rng.normal(0, 0.12, 2) * max(width, height)
        ends = [tuple(middle + 0.3 * reach), tuple(middle + 2 * np.abs(reach))]
        colour = tuple(int(v) for v in rng.integers(20, 200, 3))
        ImageDraw.Draw(desk).line(ends, fill=colour, width=max(2, round(0.012 * max(shape))))
    scene = np.asarray(desk) / 255 * light(shape, rng.uniform(0.1, 0.7), rng)[..., None]
    scene = scene / max(1.0, float(np.percentile(scene, 99.5)))
    scene = scene + rng.normal(0, rng.uniform(0.003, 0.02), scene.shape)
    photo = Image.fromarray((255 * scene).clip(0, 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(buffer)
