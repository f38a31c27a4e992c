"""Generator A of hard pictures: enlarged pixels, re-inked by distance (the one to tune on).

A digit is enlarged with a spline, cut at half its height, and its outline moved in or out until
the stroke has the weight of some pen. Paper is noise with a 1/f spectrum, light a polynomial, and
the camera one of Pillow's quadrilateral transforms. `hard_images_b` does each of these in another way.

A kind is a function of (digit, rng) → picture, where ``digit`` is uint8 [28, 28] as in MNIST.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

__all__ = ["KINDS"]

Digit: TypeAlias = NDArray[np.uint8]
Float: TypeAlias = NDArray[np.float64]
Rng: TypeAlias = np.random.Generator


def shape_of(digit: Digit, side: int, weight: float | None, rng: Rng) -> Float:
    """Coverage [h, w] of the digit, cropped to it, longest side near ``side`` pixels.

    ``weight`` is the wanted width of the stroke over ``side``; None keeps the writer's.
    """
    del rng
    rows, columns = np.flatnonzero(digit.max(1)), np.flatnonzero(digit.max(0))
    tight = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float) / 255
    work = 160
    factor = work / max(tight.shape)
    big = ndimage.zoom(np.pad(tight, 2), factor, order=3)
    big = ndimage.gaussian_filter(big, 0.35 * factor)
    mask = big > 0.45 * np.percentile(big[big > 0.1], 90)
    inside = ndimage.distance_transform_edt(mask)
    distance = np.where(mask, inside - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))
    if weight is not None:
        ridge = inside[(inside == ndimage.maximum_filter(inside, 5)) & mask]
        now = 2 * float(np.median(ridge))
        room = int(max(0, weight * work - now) / 2) + 2
        distance = np.pad(distance, room, mode="linear_ramp", end_values=-room - 2 * factor)
        # an exact distance again, where padding only guessed it
        outside = distance < 0
        distance[outside] = 0.5 - ndimage.distance_transform_edt(outside)[outside]
        mask_now = distance > 0
        moved = distance + (weight * work - now) / 2
        # where thinning would break the line, a line of that width along its middle holds it
        if weight * work < now:
            middle = (
                0.5
                + weight * work / 2
                - ndimage.distance_transform_edt(~(skeleton(mask_now) & (distance > 0.22 * now)))
            )
            moved = np.maximum(moved, middle)
        distance = moved
    rows, columns = np.flatnonzero(distance.max(1) > 0), np.flatnonzero(distance.max(0) > 0)
    distance = distance[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(distance.shape)
    if scale >= 1:
        out = np.clip(ndimage.zoom(distance, scale, order=1) * scale + 0.5, 0, 1)
    else:
        fine = np.clip(distance + 0.5, 0, 1)
        size = (max(1, round(fine.shape[1] * scale)), max(1, round(fine.shape[0] * scale)))
        reduced = Image.fromarray(fine.astype(np.float32)).resize(size, Image.Resampling.BOX)
        out = np.asarray(reduced, dtype=float)
    rows, columns = np.flatnonzero(out.max(1) > 0.2), np.flatnonzero(out.max(0) > 0.2)
    return np.asarray(out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def skeleton(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The middle line of a mask: hit-or-miss thinning with the L elements of the Golay alphabet."""
    hit = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1]], bool)
    miss = np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
    hit_2 = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 0]], bool)
    miss_2 = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
    thin = mask.copy()
    while True:
        before = int(thin.sum())
        for turn in range(4):
            for one, none in ((hit, miss), (hit_2, miss_2)):
                found = ndimage.binary_hit_or_miss(thin, np.rot90(one, turn), np.rot90(none, turn))
                thin &= ~found
        if int(thin.sum()) == before:
            return thin


def put(cover: Float, shape: tuple[int, int], y: float, x: float) -> Float:
    """The coverage on a field of ``shape``, at a relative place (0 is top or left, 1 the other)."""
    field = np.zeros(shape)
    cover = cover[: shape[0], : shape[1]]
    top = round(y * (shape[0] - cover.shape[0]))
    left = round(x * (shape[1] - cover.shape[1]))
    field[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
    return field


def cloud(shape: tuple[int, int], slope: float, rng: Rng) -> Float:
    """Noise of mean 0 and deviation 1 whose amplitude falls as 1/f^slope."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    f = np.hypot(fy, fx)
    f[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=shape)) / f**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(noise / noise.std())


def light(shape: tuple[int, int], strength: float, rng: Rng) -> Float:
    """A smooth light [h, w] of mean 1: a random quadratic with a range of ``strength``."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    a = rng.normal(size=5)
    field = a[0] * x + a[1] * y + 0.4 * (a[2] * x * y + a[3] * x * x + a[4] * y * y)
    field = field - field.mean()
    field = field / max(np.ptp(field), 1e-6)
    return np.asarray(np.exp(strength * field))


def photo(
    cover: Float,
    rng: Rng,
    *,
    sheet: tuple[float, float, float] = (0.9, 0.9, 0.88),
    ink: tuple[float, float, float] = (0.1, 0.1, 0.12),
    grain: float = 0.01,
    light_strength: float = 0.4,
    noise: float = 0.012,
    blur: float = 0.7,
    quality: int | None = 80,
    extra: Callable[[Float], Float] | None = None,
) -> Image.Image:
    """Ink on a sheet, lit and stored; ``extra`` changes the lit scene [h, w, 3] before the lens."""
    shape = (cover.shape[0], cover.shape[1])
    back = np.asarray(sheet) * (1 + grain * cloud(shape, 0.6, rng))[..., None]
    scene = back * (1 - cover[..., None]) + np.asarray(ink) * cover[..., None]
    scene = scene * light(shape, light_strength, rng)[..., None]
    if extra is not None:
        scene = extra(scene)
    scene = ndimage.gaussian_filter(scene, (blur, blur, 0))
    scene = scene + rng.normal(0, noise, scene.shape) + rng.normal(0, noise, shape)[..., None]
    return stored(Image.fromarray((np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)), quality)


def stored(picture: Image.Image, quality: int | None) -> Image.Image:
    """Through JPEG and back, unless ``quality`` is None."""
    if quality is None:
        return picture
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def frame(rng: Rng, low: int = 200, high: int = 500) -> tuple[int, int]:
    """A picture's size."""
    return int(rng.integers(low, high)), int(rng.integers(low, high))


def on_page(
    digit: Digit, rng: Rng, shape: tuple[int, int], share: tuple[float, float],
    weight: tuple[float, float] = (0.06, 0.14), spread: float = 0.6,
) -> Float:  # fmt: skip
    """Coverage of a digit somewhere on a page."""
    cover = shape_of(digit, int(rng.uniform(*share) * min(shape)), rng.uniform(*weight), rng)
    y, x = 0.5 + spread * rng.uniform(-0.5, 0.5, 2)
    return put(cover, shape, y, x)


def lamp_photo(digit: Digit, rng: Rng) -> Image.Image:
    """Paper in strongly uneven light."""
    cover = on_page(digit, rng, frame(rng), (0.2, 0.7))
    return photo(cover, rng, light_strength=rng.uniform(0.5, 1.6), blur=rng.uniform(0.4, 1.2))


def hard_shadow(digit: Digit, rng: Rng) -> Image.Image:
    """Half of the page lies in a shadow whose edge may cross the digit."""
    shape = frame(rng)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    angle = rng.uniform(0, 2 * np.pi)
    across = (x - shape[1] / 2) * np.cos(angle) + (y - shape[0] / 2) * np.sin(angle)
    edge = across + 6 * cloud(shape, 1.8, rng) - rng.normal(0, 0.15) * min(shape)
    shade = 1 - rng.uniform(0.25, 0.55) / (1 + np.exp(-edge / rng.uniform(2, 20)))
    cover = on_page(digit, rng, shape, (0.25, 0.6))
    return photo(cover, rng, extra=lambda s: s * shade[..., None])


def hand_shadow(digit: Digit, rng: Rng) -> Image.Image:
    """The shadow of a hand or a phone may cross the digit."""
    shape = frame(rng)
    shade = cast_shadow(shape, rng)
    cover = on_page(digit, rng, shape, (0.2, 0.6))
    return photo(cover, rng, extra=lambda s: s * shade[..., None])


def cast_shadow(shape: tuple[int, int], rng: Rng) -> Float:
    """The light [h, w] that a rounded shadow leaves which reaches in from an edge."""
    angle = np.linspace(0, 2 * np.pi, 200)
    waves = sum(rng.normal(0, 0.25 / k) * np.sin(k * angle + rng.uniform(0, 6)) for k in range(2, 9))
    reach = min(shape) * rng.uniform(0.3, 0.8) * (1 + np.clip(waves, -0.6, 0.6))
    side = rng.uniform(0, 2 * np.pi)
    at = [(0.5 + 0.55 * f) * n for f, n in zip((np.sin(side), np.cos(side)), shape, strict=True)]
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    turn = np.arctan2(y - at[0], x - at[1]) % (2 * np.pi)
    edge = np.hypot(y - at[0], x - at[1]) - np.interp(turn, angle, reach)
    soft = np.tanh(edge / rng.uniform(1, 12))
    return np.asarray(1 - rng.uniform(0.3, 0.65) * (1 - soft) / 2)


def faint_pen(digit: Digit, rng: Rng) -> Image.Image:
    """A thin coloured pen of low contrast."""
    inks = [(0.35, 0.42, 0.78), (0.8, 0.4, 0.45), (0.4, 0.62, 0.5), (0.55, 0.55, 0.57)]
    cover = on_page(digit, rng, frame(rng), (0.3, 0.6), (0.035, 0.07))
    return photo(cover, rng, ink=inks[rng.integers(4)], noise=0.02, light_strength=0.5)


def grainy_pencil(digit: Digit, rng: Rng) -> Image.Image:
    """Pencil that misses the hollows of the paper, so that strokes have holes."""
    shape = frame(rng)
    cover = on_page(digit, rng, shape, (0.3, 0.6), (0.05, 0.09))
    cover = cover * np.clip(0.65 + 0.5 * cloud(shape, 0.3, rng), 0.1, 1)
    return photo(cover, rng, ink=(0.35, 0.35, 0.37), grain=0.02)


def page_lines(
    shape: tuple[int, int], rng: Rng, spacing: float, thick: float, squared: bool
) -> Float:
    """Ruled or squared lines, drawn level and turned by a few degrees with the page."""
    side = int(1.2 * max(shape)) + 4
    page = np.zeros((side, side))
    start = rng.uniform(0, spacing)
    for position in np.arange(start, side - thick - 1, spacing):
        page[round(position) : round(position) + max(1, round(thick))] = 1
        if squared:
            page[:, round(position) : round(position) + max(1, round(thick))] = 1
    turned = ndimage.rotate(page, rng.normal(0, 1.8), reshape=False, order=1)
    y, x = (side - shape[0]) // 2, (side - shape[1]) // 2
    return np.asarray(np.clip(turned[y : y + shape[0], x : x + shape[1]], 0, 1))


def lined(digit: Digit, rng: Rng, squared: bool, dark: float) -> Image.Image:
    """A digit on printed lines; ``dark`` is the lines' strength beside the ink."""
    shape = frame(rng, 250, 550)
    cover = on_page(digit, rng, shape, (0.3, 0.6), (0.07, 0.12))
    spacing = min(shape) * (rng.uniform(0.12, 0.3) if squared else rng.uniform(0.25, 0.5))
    rule = page_lines(shape, rng, spacing, rng.uniform(1, 2.6), squared) * dark
    colour = np.asarray([(0.3, 0.45, 0.8), (0.5, 0.5, 0.55), (0.8, 0.45, 0.5)][rng.integers(3)])

    def print_lines(scene: Float) -> Float:
        alpha = (rule * (1 - cover))[..., None]
        return scene * (1 - alpha) + colour * 0.9 * alpha

    inks = [(0.08, 0.08, 0.1), (0.1, 0.13, 0.4)]
    return photo(cover, rng, ink=inks[rng.integers(2)], extra=print_lines)


def ruled_page(digit: Digit, rng: Rng) -> Image.Image:
    """Ruled paper, lines from pale to nearly as dark as the ink."""
    return lined(digit, rng, False, rng.uniform(0.4, 1.0))


def squared_page(digit: Digit, rng: Rng) -> Image.Image:
    """Squared paper."""
    return lined(digit, rng, True, rng.uniform(0.3, 0.8))


def pencil_on_lines(digit: Digit, rng: Rng) -> Image.Image:
    """Pencil on lines that are darker than it, ruled or squared."""
    shape = frame(rng, 250, 550)
    cover = on_page(digit, rng, shape, (0.3, 0.6), (0.06, 0.11))
    squared = rng.random() < 0.4
    spacing = min(shape) * rng.uniform(0.2, 0.4)
    rule = page_lines(shape, rng, spacing, rng.uniform(1, 2.6), squared)[..., None]
    grey = rng.uniform(0.2, 0.4)
    return photo(cover, rng, ink=(0.4, 0.4, 0.42), extra=lambda s: s * (1 - rule) + grey * rule)


def form_box(digit: Digit, rng: Rng) -> Image.Image:
    """A digit in a printed box of a form, seen with a little of its surroundings."""
    side = int(rng.integers(60, 300))
    cover = on_page(digit, rng, (side, side), (0.4, 0.62), (0.07, 0.13), spread=0.4)
    inset, thick = int(side * rng.uniform(0.03, 0.1)), max(1, int(side * 0.012))
    box = np.zeros((side, side))
    box[inset:-inset, inset:-inset] = 1
    box[inset + thick : -inset - thick, inset + thick : -inset - thick] = 0
    box = ndimage.rotate(box, rng.normal(0, 1), reshape=False, order=1)
    return photo(np.maximum(cover, box * rng.uniform(0.5, 0.95)), rng, light_strength=0.2)


def heavy_jpeg(digit: Digit, rng: Rng) -> Image.Image:
    """Small and compressed to pieces."""
    cover = on_page(digit, rng, frame(rng, 70, 200), (0.45, 0.8), (0.08, 0.14))
    return photo(cover, rng, quality=int(rng.integers(6, 25)), light_strength=0.3)


def blurred(digit: Digit, rng: Rng) -> Image.Image:
    """Out of focus by up to a stroke's width."""
    shape = frame(rng)
    cover = on_page(digit, rng, shape, (0.35, 0.6), (0.08, 0.14))
    return photo(cover, rng, blur=0.05 * 0.45 * min(shape) * rng.uniform(0.3, 1))


def aside(digit: Digit, rng: Rng) -> Image.Image:
    """From aside, with the table's dark showing where the sheet ends."""
    shape = frame(rng, 300, 500)
    cover = on_page(digit, rng, shape, (0.3, 0.5), spread=0.3)
    flat = photo(cover, rng, quality=None)
    h, w = shape
    j = rng.uniform(-0.12, 0.06, 8) * np.tile([w, h], 4)
    quad = [j[0], j[1], j[2], h - j[3], w - j[4], h - j[5], w - j[6], j[7]]
    table = tuple(int(v) for v in rng.integers(30, 120, 3))
    seen = flat.transform(
        (w, h), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR, fillcolor=table
    )
    return stored(seen.filter(ImageFilter.GaussianBlur(0.6)), 85)


def thumbnail(digit: Digit, rng: Rng) -> Image.Image:
    """Twenty to forty-five pixels in all, of either polarity."""
    side = int(rng.integers(20, 46))
    cover = on_page(digit, rng, (4 * side, 4 * side), (0.65, 0.95), (0.08, 0.15))
    picture = photo(cover, rng, quality=None).resize((side, side), Image.Resampling.BICUBIC)
    return picture.convert("L") if rng.random() < 0.5 else picture


def phone(digit: Digit, rng: Rng) -> Image.Image:
    """A whole phone picture, 1500 to 3000 pixels wide, from a strip of which the digit looks."""
    h = int(rng.integers(1100, 2200))
    shape = (h, int(h * 4 / 3))
    cover = on_page(digit, rng, shape, (0.1, 0.6))
    return photo(cover, rng, light_strength=rng.uniform(0.3, 1.2), blur=1.5, noise=0.025)


def corner(digit: Digit, rng: Rng) -> Image.Image:
    """Small, and anywhere on the page, with crumbs."""
    shape = frame(rng, 350, 700)
    cover = on_page(digit, rng, shape, (0.08, 0.2), (0.08, 0.14), spread=0.97)
    crumbs = ndimage.gaussian_filter((rng.random(shape) < 2e-5).astype(float), 1.0) * 8
    return photo(np.clip(cover + np.clip(crumbs, 0, 0.8), 0, 1), rng)


def cropped_tight(digit: Digit, rng: Rng) -> Image.Image:
    """Cut along the ink, in either polarity."""
    cover = shape_of(digit, int(rng.integers(40, 200)), rng.uniform(0.07, 0.18), rng)
    cover = np.pad(cover, int(rng.integers(0, 3)))
    if rng.random() < 0.3:
        board, chalk = (0.12, 0.2, 0.15), (0.85, 0.87, 0.85)
        return photo(cover, rng, sheet=board, ink=chalk, light_strength=0.3)
    return photo(cover, rng, light_strength=0.3)


def cut_at_edge(digit: Digit, rng: Rng) -> Image.Image:
    """The digit touches one edge of the picture."""
    shape = frame(rng, 80, 300)
    cover = shape_of(digit, int(rng.uniform(0.5, 0.85) * min(shape)), rng.uniform(0.07, 0.14), rng)
    y, x = rng.uniform(0.2, 0.8, 2)
    if rng.random() < 0.5:
        y = float(rng.integers(2))
    else:
        x = float(rng.integers(2))
    return photo(put(cover, shape, y, x), rng)


def neighbours(digit: Digit, rng: Rng) -> Image.Image:
    """Cut from a number: slivers of other strokes hang in at the left and right edges."""
    side = int(rng.integers(80, 260))
    cover = on_page(digit, rng, (side, side), (0.55, 0.7), (0.07, 0.13), spread=0.2)
    for left in (True, False):
        if rng.random() < 0.6:
            length, reach = int(side * rng.uniform(0.1, 0.4)), int(side * rng.uniform(0.01, 0.06))
            top = int(rng.uniform(0.2, 0.8) * (side - length))
            part = slice(0, reach) if left else slice(side - reach, side)
            cover[top : top + length, part] = 0.9
    return photo(cover, rng, light_strength=0.3)


def mnist(digit: Digit, rng: Rng) -> Image.Image:
    """The 28×28 image, in either polarity, sometimes through JPEG."""
    picture = Image.fromarray(digit if rng.random() < 0.5 else 255 - digit)
    return stored(picture, 90 if rng.random() < 0.3 else None)


def mnist_enlarged(digit: Digit, rng: Rng) -> Image.Image:
    """The 28×28 image enlarged, in either polarity."""
    side = int(rng.integers(56, 400))
    how = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS]
    picture = Image.fromarray(digit if rng.random() < 0.5 else 255 - digit)
    return picture.resize((side, side), how[rng.integers(3)])


def canvas28(digit: Digit, rng: Rng) -> Image.Image:
    """A 28×28 drawing grid: brush cells filled whole, the digit not centred nor fitted."""
    cover = shape_of(digit, int(rng.integers(14, 26)), rng.uniform(0.09, 0.15), rng)
    y, x = rng.uniform(0, 1, 2)
    field = put(cover, (28, 28), y, x)
    if rng.random() < 0.5:
        field = (field > 0.4).astype(float)
    pixels = (field * 255).astype(np.uint8)
    return Image.fromarray(pixels if rng.random() < 0.6 else 255 - pixels)


def ink_in_alpha(digit: Digit, rng: Rng) -> Image.Image:
    """A transparent canvas with a drawing in any colour, white among them."""
    shape = frame(rng, 90, 400)
    cover = on_page(digit, rng, shape, (0.4, 0.9), (0.04, 0.16))
    pixels = np.zeros((*shape, 4), np.uint8)
    pixels[..., :3] = rng.choice([0, 255], 3) if rng.random() < 0.6 else rng.integers(0, 256, 3)
    if rng.random() < 0.5:
        pixels[cover == 0] = 0
    pixels[..., 3] = (cover * 255).astype(np.uint8)
    return Image.fromarray(pixels)


def coloured(digit: Digit, rng: Rng) -> Image.Image:
    """Two colours that differ clearly in at least one channel, though perhaps not in grey."""
    while True:
        sheet, ink = rng.uniform(0.1, 0.95, 3), rng.uniform(0.05, 0.95, 3)
        if np.abs(sheet - ink).max() > 0.35 and np.abs(sheet - ink).sum() > 0.5:
            break
    cover = on_page(digit, rng, frame(rng), (0.3, 0.7))
    return photo(
        cover, rng, sheet=(sheet[0], sheet[1], sheet[2]), ink=(ink[0], ink[1], ink[2]), quality=90
    )


def board(digit: Digit, rng: Rng) -> Image.Image:
    """Dusty chalk on a smeared board."""
    shape = frame(rng)
    cover = on_page(digit, rng, shape, (0.3, 0.65), (0.06, 0.12))
    cover = cover * np.clip(0.7 + 0.4 * cloud(shape, 0.2, rng), 0, 1)
    smear = 0.05 * np.clip(cloud(shape, 1.5, rng), -1, 3)[..., None]
    return photo(
        cover, rng, sheet=(0.14, 0.22, 0.18), ink=(0.85, 0.85, 0.82), extra=lambda s: s + smear
    )


def marker_board(digit: Digit, rng: Rng) -> Image.Image:
    """A marker on a whiteboard, with a broad reflection and a faint ghost of old writing."""
    shape = frame(rng, 250, 500)
    cover = on_page(digit, rng, shape, (0.3, 0.6), (0.07, 0.15))
    ghost = 0.06 * (cloud(shape, 1.6, rng) > 1.2)[..., None]
    shine = 0.12 * np.clip(cloud(shape, 2.2, rng), 0, 2)[..., None]
    inks = [(0.08, 0.08, 0.1), (0.7, 0.1, 0.12), (0.1, 0.2, 0.6), (0.1, 0.5, 0.25)]
    return photo(
        cover, rng, sheet=(0.75, 0.77, 0.78), ink=inks[rng.integers(4)], grain=0.003,
        extra=lambda s: s - ghost + shine,
    )  # fmt: skip


def lit_board(digit: Digit, rng: Rng) -> Image.Image:
    """A pale marker on a whiteboard that mirrors several lamps, one perhaps behind the digit."""
    shape = frame(rng, 250, 500)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    shine = np.zeros(shape)
    for _ in range(rng.integers(1, 6)):
        across, down = (x - rng.uniform(0, shape[1])), (y - rng.uniform(0, shape[0]))
        radius = rng.uniform(0.06, 0.25, 2) * max(shape)
        power = rng.choice([1.0, 4.0])  # a soft lamp, or a pane with an edge
        shine += rng.uniform(0.1, 0.5) * np.exp(
            -(((across / radius[0]) ** 2 + (down / radius[1]) ** 2) ** power)
        )
    cover = on_page(digit, rng, shape, (0.2, 0.6), (0.05, 0.12))
    level, ink = rng.uniform(0.45, 0.75), rng.uniform(0.05, 0.5, 3)
    return photo(
        cover, rng, sheet=(level, level, level), ink=tuple(level * ink), grain=0.003,
        extra=lambda s: s + shine[..., None] * (1 - 0.5 * s),
    )  # fmt: skip


def dry_marker(digit: Digit, rng: Rng) -> Image.Image:
    """A half-dry marker on a glossy board: streaks, a lamp's reflection, half-wiped old strokes."""
    shape = frame(rng, 250, 600)
    cover = on_page(digit, rng, shape, (0.35, 0.7), (0.05, 0.14), 0.4)
    stretched = ndimage.zoom(cloud((shape[0] // 12, shape[1]), 0.8, rng), (14, 1), order=1)
    streaks = ndimage.rotate(stretched, rng.uniform(0, 180), reshape=False, mode="reflect")
    streaks = np.resize(streaks, shape)
    cover = cover * np.clip(0.85 + 0.2 * streaks, 0.35, 1)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    centre, radius = rng.uniform(0, 1, 2) * shape, rng.uniform(0.1, 0.35) * min(shape)
    lamp = np.exp(-(((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / radius**2))[..., None]
    old = np.roll(cover[::-1, ::-1], rng.integers(-90, 90, 2), (0, 1))
    wiped = old * np.clip(cloud(shape, 1.2, rng), 0, 1) * rng.uniform(0.05, 0.25)
    inks = [(0.08, 0.08, 0.1), (0.75, 0.12, 0.15), (0.1, 0.25, 0.65), (0.1, 0.5, 0.3)]
    ink = np.asarray(inks[rng.integers(4)])
    gloss = rng.uniform(0.1, 0.5)
    return photo(
        cover, rng, sheet=(0.8, 0.81, 0.82), ink=tuple(ink), grain=0.004, light_strength=0.6,
        extra=lambda s: s * (1 - wiped[..., None] * (1 - ink)) + gloss * lamp,
    )  # fmt: skip


def close_up(digit: Digit, rng: Rng) -> Image.Image:
    """Thousands of pixels of brush or chalk: every hair of the stroke is wider than a pixel."""
    side = int(rng.integers(1200, 3000))
    shape = (side, int(side * rng.uniform(0.75, 1.33)))
    cover = on_page(digit, rng, shape, (0.55, 0.95), (0.04, 0.2), 0.3)
    rough = ndimage.zoom(cloud((side // 8, shape[1] // 8), 0.9, rng), 8.1, order=1)
    rough = rough[: shape[0], : shape[1]]
    soft = ndimage.gaussian_filter(cover, side / 250)
    cover = np.clip((soft + 0.12 * rough - 0.4) * 5, 0, 1) * (1 - 0.15 * (rough > 1))
    dark, bright = (0.15, 0.13, 0.12), (0.85, 0.84, 0.8)
    sheet, ink = (bright, dark) if rng.random() < 0.7 else (dark, bright)
    return photo(cover, rng, sheet=sheet, ink=ink, light_strength=rng.uniform(0.2, 0.9), blur=2)


def one_pixel(digit: Digit, rng: Rng) -> Image.Image:
    """A paint program's pencil or a thin brush, hard-edged."""
    shape = frame(rng, 80, 400)
    height = int(rng.uniform(0.4, 0.85) * min(shape))
    wobble = ndimage.map_coordinates(
        shape_of(digit, height, max(0.012, 1.6 / height), rng),
        np.mgrid[0:height, 0:height]
        + 0.008 * height * np.stack([cloud((height, height), 1.5, rng) for _ in range(2)]),
        order=1,
    )
    field = put(wobble, shape, *rng.uniform(0.1, 0.9, 2)) > 0.35
    return Image.fromarray(np.where(field, 0, 255).astype(np.uint8))


def fat_brush(digit: Digit, rng: Rng) -> Image.Image:
    """A fat round brush in a drawing app."""
    shape = frame(rng, 100, 500)
    cover = on_page(digit, rng, shape, (0.45, 0.9), (0.14, 0.24))
    back, front = [(255, 0), (0, 255), (238, 60), (40, 230), (255, 120)][rng.integers(5)]
    return Image.fromarray((back + (front - back) * cover).astype(np.uint8))


def bilevel_scan(digit: Digit, rng: Rng) -> Image.Image:
    """A fax: two levels, salt and pepper, and a black bar at one edge."""
    shape = frame(rng, 120, 350)
    cover = on_page(digit, rng, shape, (0.4, 0.7), (0.06, 0.13))
    grey = 1 - cover + 0.18 * rng.normal(size=shape)
    flip = rng.random(shape)
    grey[flip < 0.004], grey[flip > 0.996] = 0, 1
    bar = int(rng.integers(0, 9))
    if bar:
        grey[:bar] = 0
    return Image.fromarray((grey > 0.5).astype(np.uint8) * 255).convert("1")


def noisy_scan(digit: Digit, rng: Rng) -> Image.Image:
    """A grey scan with strong noise and a page edge."""
    shape = frame(rng, 150, 400)
    cover = on_page(digit, rng, shape, (0.4, 0.7), (0.07, 0.13))
    edge = int(rng.integers(0, 12))

    def page_edge(scene: Float) -> Float:
        if edge:
            scene[:, -edge:] *= 0.4
        return scene

    return photo(cover, rng, noise=0.07, light_strength=0.1, quality=None, extra=page_edge)


def on_a_desk(digit: Digit, rng: Rng) -> Image.Image:
    """A note on a dark or light desk, with its own shadow along an edge."""
    shape = frame(rng, 300, 600)
    h, w = shape
    cover = on_page(digit, rng, shape, (0.2, 0.38), (0.07, 0.13), spread=0.15)
    y, x = np.mgrid[0:h, 0:w]
    a = rng.normal(0, 0.08)
    u, v = (
        (x - w / 2) * np.cos(a) + (y - h / 2) * np.sin(a),
        (y - h / 2) * np.cos(a) - (x - w / 2) * np.sin(a),
    )
    note = (np.abs(u) < w * rng.uniform(0.33, 0.55)) & (np.abs(v) < h * rng.uniform(0.33, 0.55))
    soft = ndimage.gaussian_filter(note.astype(float), 0.8)[..., None]
    shade = 1 - 0.4 * ndimage.shift(ndimage.gaussian_filter(note.astype(float), 5), (6, 6))
    desk = np.asarray([(0.35, 0.22, 0.13), (0.2, 0.2, 0.22), (0.6, 0.5, 0.4)][rng.integers(3)])
    table = desk * (1 + 0.12 * cloud(shape, 1.2, rng))[..., None] * shade[..., None]
    return photo(cover, rng, extra=lambda s: s * soft + table * (1 - soft))


def broken(digit: Digit, rng: Rng) -> Image.Image:
    """A dry pen: one or two gaps across the stroke."""
    shape = frame(rng)
    cover = on_page(digit, rng, shape, (0.4, 0.65), (0.07, 0.12))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    rows, columns = np.nonzero(cover > 0.5)
    for _ in range(int(rng.integers(1, 3))):
        k = int(rng.integers(len(rows)))
        angle = rng.uniform(0, np.pi)
        across = (x - columns[k]) * np.cos(angle) + (y - rows[k]) * np.sin(angle)
        near = np.hypot(x - columns[k], y - rows[k]) < 0.09 * min(shape)
        cover[(np.abs(across) < 0.008 * min(shape) + 1) & near] = 0
    return photo(cover, rng)


def screen(digit: Digit, rng: Rng) -> Image.Image:
    """A screen photographed: moiré stripes over everything."""
    shape = frame(rng, 250, 500)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    stripes = 1 + rng.uniform(0.02, 0.07) * wave[..., None]
    cover = on_page(digit, rng, shape, (0.3, 0.65))
    return photo(cover, rng, extra=lambda s: s * stripes)


def deep(digit: Digit, rng: Rng) -> Image.Image:
    """Sixteen bits, floats, CMYK or a palette."""
    cover = on_page(digit, rng, frame(rng, 100, 250), (0.4, 0.75))
    picture = photo(cover, rng, quality=None)
    grey = np.asarray(picture.convert("L"))
    form = int(rng.integers(5))
    if form == 0:
        return Image.fromarray(grey.astype(np.uint16) * 256)
    if form == 1:
        return Image.fromarray(grey.astype(np.int32) * 16)
    if form == 2:
        return Image.fromarray(grey.astype(np.float32) / 255)
    return picture.convert("CMYK") if form == 3 else picture.quantize(16)


def on_a_line(digit: Digit, rng: Rng) -> Image.Image:
    """A small crop in pale ink, a ruled line just under the digit or through it."""
    shape = (int(rng.integers(40, 120)), int(rng.integers(40, 120)))
    cover = on_page(digit, rng, shape, (0.5, 0.8), (0.07, 0.13), spread=0.5)
    rows = np.flatnonzero(cover.max(1) > 0.3)
    place = rng.uniform(0.15, 1.0) if rng.random() < 0.4 else rng.uniform(0.97, 1.12)
    row = rows[0] + place * (rows[-1] - rows[0])
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    level = row + np.tan(np.radians(rng.normal(0, 1.5))) * (x - shape[1] / 2)
    thick = rng.uniform(0.8, 0.035 * shape[0] + 1)
    rule = np.clip(thick / 2 + 0.5 - np.abs(y - level), 0, 1) * rng.uniform(0.5, 1)
    pale = rng.uniform(0.35, 0.65)
    inks = [(pale, pale, pale), (pale - 0.1, pale, pale + 0.2), (pale, pale - 0.1, pale - 0.1)]
    printed = (np.asarray(inks[rng.integers(3)]) + rng.normal(0, 0.05, 3)).clip(0.2, 0.8)

    def print_line(scene: Float) -> Float:
        alpha = (rule * (1 - cover))[..., None]
        return scene * (1 - alpha) + printed * alpha

    return photo(cover, rng, ink=inks[rng.integers(3)], light_strength=0.2, extra=print_line)


def rough(digit: Digit, rng: Rng) -> Image.Image:
    """Chalk, a dry brush or a coarse bilevel scan: strokes full of gaps."""
    form = int(rng.integers(3))
    if form == 2:
        side = int(rng.integers(26, 60))
        cover = on_page(digit, rng, (side, side), (0.55, 0.85), (0.05, 0.11), spread=0.4)
        grey = 0.95 - 0.8 * cover + rng.uniform(0.05, 0.16) * rng.normal(size=cover.shape)
        picture = Image.fromarray((grey > rng.uniform(0.3, 0.6)).astype(np.uint8) * 255)
        factor = int(rng.integers(2, 7))
        return picture.resize((factor * side, factor * side), Image.Resampling.NEAREST)
    shape = frame(rng)
    cover = on_page(digit, rng, shape, (0.4, 0.75), (0.06, 0.14), spread=0.4)
    if form == 0:  # the hollows of the board stay dark
        size = max(1, min(shape) // 150)
        grain = ndimage.zoom(cloud((shape[0] // size + 1, shape[1] // size + 1), 0.25, rng), size, order=1)
        cover = cover * np.clip(1.5 * grain[: shape[0], : shape[1]] + rng.uniform(0.3, 0.9), 0, 1)
        return photo(cover, rng, sheet=(0.14, 0.2, 0.17), ink=(0.85, 0.85, 0.82))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.006, 0.02) * min(shape)
    across = (y * np.cos(angle) - x * np.sin(angle)) / width
    along = (x * np.cos(angle) + y * np.sin(angle)) / (12 * width)
    hairs = rng.normal(size=(64, 64))
    streaks = ndimage.map_coordinates(hairs, [across % 63, along % 63], order=1)
    cover = cover * np.clip(2.5 * streaks + rng.uniform(0.6, 1.8), 0, 1)
    return photo(cover, rng, ink=(0.12, 0.1, 0.12))


def along_border(digit: Digit, rng: Rng) -> Image.Image:
    """A crop that runs along a stroke: one side of the ink is the picture's border, or cut."""
    side, weight = int(rng.integers(50, 300)), rng.uniform(0.08, 0.15)
    cover = shape_of(digit, side, weight, rng)
    edges = rng.integers(3, max(4, side // 4), 4)
    cut = round(rng.uniform(0, 0.7) * weight * side)
    cover = np.pad(cover, ((edges[0], edges[1]), (edges[2], edges[3])))
    turn = int(rng.choice([0, 0, 1, 2, 3]))  # the upper border, more often
    cover = np.rot90(np.rot90(cover, turn)[edges[[0, 3, 1, 2]][turn] + cut :], -turn)
    return photo(np.ascontiguousarray(cover), rng, light_strength=0.3)


KINDS: dict[str, Callable[[Digit, Rng], Image.Image]] = {
    kind.__name__: kind
    for kind in (
        lamp_photo, hard_shadow, hand_shadow, faint_pen, grainy_pencil, ruled_page, squared_page,
        pencil_on_lines,
        form_box,
        heavy_jpeg, blurred, aside, thumbnail, phone, corner, cropped_tight, cut_at_edge,
        neighbours, mnist, mnist_enlarged, canvas28, ink_in_alpha, coloured, board, marker_board,
        lit_board, dry_marker, close_up,
        one_pixel, fat_brush, bilevel_scan, noisy_scan, on_a_desk, broken, screen, deep,
        on_a_line, rough, along_border,
    )
}  # fmt: skip
