"""Images without a digit: blank pages, noise, scribbles, clothing, letters, clutter.

`TRAINING_FONTS` are for fitting and `TEST_FONTS` for measuring; no family is in both. They come
with matplotlib; `system_fonts` finds others, for measuring only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Rng: TypeAlias = np.random.Generator
Points: TypeAlias = NDArray[np.float64]

LETTERS = "AEFHKMNRTWXVPQGJCUadefhkmnprtuvwx&@#%?$"
PLAIN_LETTERS = "AEHKMNRWX"
LOOK_ALIKES = "OIlSZBoszDi|"
TRAINING_FONTS = (
    "STIXGeneral",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmmi10",
    "DejaVuSans-",
    "DejaVuSans.",
)
TEST_FONTS = ("DejaVuSerif", "DejaVuSansMono", "cmb10")
SYSTEM = Path("/usr/share/fonts")


def font_files(families: tuple[str, ...]) -> list[Path]:
    """Return the files of matplotlib's fonts whose names start with one of `families`."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(f for f in folder.glob("*.ttf") if f.name.startswith(families))


def system_fonts() -> list[Path]:
    """Return the text fonts of this machine that are not matplotlib's."""
    found = [*SYSTEM.rglob("*.ttf"), *SYSTEM.rglob("*.otf")]
    return sorted(f for f in found if "DejaVu" not in f.name and "Symbol" not in f.name)


def grey_levels(rng: Rng) -> tuple[int, int]:
    """Choose the grey levels of background and foreground."""
    pairs = [(255, 0), (0, 255), (240, 30), (235, 70), (30, 225), (210, 60)]
    return pairs[rng.integers(len(pairs))]


def finish(image: Image.Image, rng: Rng) -> Image.Image:
    """Add a little blur and noise, as from a camera, to half of the images."""
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
        pixels = np.asarray(image, float) + rng.normal(0, rng.uniform(1, 8), image.size[::-1])
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def draw_text(text: str, font: Path, rng: Rng, weight: int | None = None) -> Image.Image:
    """Draw text in a font, large, rotated and sheared a little, on a page."""
    size = int(rng.integers(60, 160))
    face = ImageFont.truetype(str(font), size)
    side = round(size * rng.uniform(1.3, 2.2) * max(1.0, 0.6 * len(text)))
    back, ink = grey_levels(rng)
    page = Image.new("L", (side, side), back)
    bold = int(rng.integers(0, max(1, size // 20))) if weight is None else weight
    ImageDraw.Draw(page).text(
        (side / 2, side / 2), text, fill=ink, font=face, anchor="mm", stroke_width=bold
    )
    turn, shear = math.radians(rng.normal(0, 5)), rng.normal(0, 0.12)
    c, s, m = math.cos(turn), math.sin(turn), side / 2
    a = (c, s + shear, m - c * m - (s + shear) * m, -s, c, m + s * m - c * m)
    page = page.transform(
        (side, side), Image.Transform.AFFINE, a, Image.Resampling.BICUBIC, fillcolor=back
    )
    return finish(page, rng)


def reduced(page: Image.Image, rng: Rng) -> Image.Image:
    """Reduce a page to 10 to 19 pixels, all that a small picture shows of it, and enlarge that."""
    side, factor = int(rng.integers(10, 20)), int(rng.integers(4, 17))
    small = page.convert("L").resize((side, side), Image.Resampling.BOX)
    return small.resize((side * factor, side * factor), Image.Resampling.BICUBIC)


def letter(fonts: list[Path], letters: str = LETTERS) -> Callable[[Rng], Image.Image]:
    """Return a function that draws one letter in one of the fonts."""

    def make(rng: Rng) -> Image.Image:
        font = fonts[rng.integers(len(fonts))]
        return draw_text(letters[rng.integers(len(letters))], font, rng)

    return make


def blank(rng: Rng) -> Image.Image:
    """Draw an empty page: one grey, or paper with grain and a gradient of light."""
    h, w = int(rng.integers(60, 300)), int(rng.integers(60, 300))
    grey = float(rng.integers(0, 256))
    if rng.random() < 0.3:
        return Image.new("L", (w, h), int(grey))
    slope = (
        np.linspace(0, rng.uniform(-60, 60), w)[None]
        + np.linspace(0, rng.uniform(-60, 60), h)[:, None]
    )
    grain = rng.normal(0, rng.uniform(0.5, 4), (h, w))
    return Image.fromarray(np.clip(grey + slope + grain, 0, 255).astype(np.uint8))


def noise(rng: Rng) -> Image.Image:
    """Draw noise: uniform, normal, salt and pepper, or smooth."""
    h, w = int(rng.integers(28, 200)), int(rng.integers(28, 200))
    kind = int(rng.integers(4))
    if kind == 0:
        pixels = rng.uniform(0, 256, (h, w))
    elif kind == 1:
        pixels = rng.normal(128, rng.uniform(10, 60), (h, w))
    elif kind == 2:
        pixels = np.where(rng.random((h, w)) < rng.uniform(0.02, 0.5), 0.0, 255.0)
    else:
        cells = int(rng.integers(3, 30))
        grid = Image.fromarray(rng.uniform(0, 256, (cells, cells)).astype(np.float32))
        pixels = np.asarray(grid.resize((w, h), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise28(rng: Rng) -> Image.Image:
    """Draw noise of 28×28."""
    return noise(rng).resize((28, 28), Image.Resampling.NEAREST)


def scribble(rng: Rng) -> Image.Image:
    """Draw random strokes: random walks, zigzags, Lissajous curves, spirals, polygons."""
    side = int(rng.integers(100, 300))
    back, ink = grey_levels(rng)
    page = Image.new("L", (side, side), back)
    draw = ImageDraw.Draw(page)
    width = int(side * rng.uniform(0.01, 0.05)) + 1
    kind = int(rng.integers(5))
    t = np.linspace(0, 1, 300)
    low, high = 0.15 * side, 0.85 * side
    if kind == 0:
        path = np.cumsum(np.cumsum(rng.normal(0, 1, (300, 2)), 0), 0)
    elif kind == 1:
        n = int(rng.integers(4, 12))
        across = np.interp(t * n, range(n + 1), rng.random(n + 1)) + t * rng.uniform(0, 2)
        down = np.interp(t * n, range(n + 1), [i % 2 for i in range(n + 1)])
        path = np.stack([across, down], 1)
    elif kind == 2:
        a, b, c = rng.uniform(2, 9, 3)
        path = np.stack([np.sin(6 * a * t) + 0.5 * np.sin(6 * c * t), np.cos(6 * b * t)], 1)
    elif kind == 3:
        turns = rng.uniform(2.5, 6)
        path = np.stack([t * np.cos(6.28 * turns * t), t * np.sin(6.28 * turns * t)], 1)
    else:
        path = rng.random((int(rng.integers(6, 25)), 2))
    span = np.ptp(path, axis=0).max()
    path = low + (path - path.min(0)) / max(float(span), 1e-6) * (high - low)
    draw.line([(float(x), float(y)) for x, y in path], fill=ink, width=width, joint="curve")
    return finish(page, rng)


OUTLINES = {
    "shirt": "32,10 42,15 58,15 68,10 100,35 86,45 74,30 75,95 25,95 26,30 14,45 0,35",
    "pullover": "32,10 42,15 58,15 68,10 98,80 84,84 74,40 75,95 25,95 26,40 16,84 2,80",
    "trousers": "30,2 70,2 80,98 60,98 50,35 40,98 20,98",
    "dress": "35,2 50,12 65,2 62,40 85,98 15,98 38,40",
    "shoe": "2,35 25,40 45,30 70,50 97,60 98,75 2,75",
    "boot": "10,5 45,5 48,55 95,70 97,95 10,95",
    "bag": "5,35 30,35 35,10 65,10 70,35 95,35 90,95 10,95",
}


def outline(name: str, rng: Rng) -> Points:
    """Return the outline of a garment in the unit square, every corner moved a little."""
    corners = np.array([[float(v) for v in pair.split(",")] for pair in OUTLINES[name].split()])
    return corners / 100 + 0.02 * rng.normal(size=corners.shape)


def clothing(rng: Rng) -> Image.Image:
    """Draw a filled garment with folds, or only its outline, 28×28 or larger."""
    side = 112
    names = list(OUTLINES)
    shape = outline(names[rng.integers(len(names))], rng)
    path = [(float(x), float(y)) for x, y in 8 + shape * (side - 16)]
    mask = Image.new("L", (side, side))
    filled = rng.random() < 0.8
    if filled:
        ImageDraw.Draw(mask).polygon(path, fill=255)
    else:
        ImageDraw.Draw(mask).line([*path, path[0]], fill=255, width=int(rng.integers(3, 10)))
    cells = int(rng.integers(4, 12))
    folds = Image.fromarray(rng.uniform(0.35, 1, (cells, cells)).astype(np.float32))
    cloth = np.asarray(folds.resize((side, side), Image.Resampling.BICUBIC))
    bright = np.asarray(mask, float) * (cloth if filled else 1.0)
    image = Image.fromarray(np.clip(bright, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        image = image.point(lambda v: 255 - v)
    if rng.random() < 0.5:
        return image.resize((28, 28), Image.Resampling.BOX)
    return finish(image, rng)


def clutter(rng: Rng) -> Image.Image:
    """Draw discs, boxes and bars in many greys, in place of a photograph of objects."""
    h, w = int(rng.integers(80, 250)), int(rng.integers(80, 250))
    page = Image.new("L", (w, h), int(rng.integers(256)))
    draw = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(4, 30))):
        x, y = rng.uniform(-0.2, 1) * w, rng.uniform(-0.2, 1) * h
        box = [x, y, x + rng.uniform(0.05, 0.6) * w, y + rng.uniform(0.05, 0.6) * h]
        draw_shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        draw_shape(box, fill=int(rng.integers(256)))
    return finish(page, rng)


KINDS: dict[str, Callable[[Rng], Image.Image]] = {
    kind.__name__: kind for kind in (blank, noise, noise28, scribble, clothing, clutter)
}
