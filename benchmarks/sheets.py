"""Rows and sheets of digits, most of them MNIST's training digits: how many `--multi` reads.

    MNIST_CE_DATA_DIR=… python -m benchmarks.sheets --count 40 --checkpoint pretrained

A line is exact where the labels of its accepted digits are the written ones; an image is exact
where all of its lines are. "found" is the share of the written digits that are read in order.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.common import Format, argument_parser, mnist, percent, print_table
from generators.desk import on_desk
from generators.hard_images_a import cast_shadow
from mnist_ce.data.synthetic import load_styles, pen_path
from mnist_ce.prediction.predict import Prediction, predict
from mnist_ce.runs.load_model import load_model

Cover = NDArray[np.float32]
COLUMNS: dict[str, Format] = {
    "kind": str, "images": str, "exact images": percent, "exact lines": percent,
    "digits": str, "found": percent, "wrong or extra": percent, "CPU ms": "{:.0f}".format,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a kind of sheet looks; ranges are drawn from uniformly, lengths in digit heights."""

    lines: tuple[int, int] = (1, 1)
    digits: tuple[int, int] = (2, 12)
    gap: tuple[float, float] = (0.15, 0.6)
    touching: float = 0.0  # share of neighbours that touch
    turn: float = 2.0  # degrees at most
    ruling: tuple[str, ...] = ()  # "lines", "squares" or "boxes"
    own_colour: float = 0.0  # share of rulings in the pen's colour
    extras: str = ""  # signs written between the digits
    groups: float = 0.0  # share of gaps that are as wide as between the groups of a number
    shadow: bool = False  # of a hand
    drawn: bool = False  # by lines of 1 or 2 pixels on white, as with a mouse
    zeros: float = 0.0  # share of zeros among the digits after the first
    between: str = ""  # signs between the two numbers of a line
    base_lines: bool = False  # a ruled line under or through each text line
    desk: bool = False  # photographed on a desk
    turns: tuple[int, ...] = ()  # degrees that the image is turned by
    heights: tuple[int, int] = field(default=(28, 70))


KINDS = {
    "row": Layout(),
    "uneven row": Layout(gap=(0.05, 2.0), turn=8),
    "touching row": Layout(touching=0.4, digits=(2, 8)),
    "touching pair": Layout(touching=1.0, digits=(2, 2)),
    "sheet": Layout(lines=(2, 8), digits=(2, 10)),
    "slanted sheet": Layout(lines=(2, 6), gap=(0.1, 1.5), turn=8),
    "ruled": Layout(lines=(1, 5), ruling=("lines",), own_colour=0.3),
    "squared": Layout(lines=(1, 5), ruling=("squares",), own_colour=0.2),
    "form": Layout(lines=(1, 4), gap=(0.4, 0.6), ruling=("boxes",), own_colour=0.3, turn=1),
    "signs": Layout(lines=(1, 4), digits=(3, 8), gap=(0.3, 0.6), extras="-−.,AKM=+/"),
    "column": Layout(lines=(3, 8), digits=(1, 1)),
    "groups": Layout(digits=(6, 12), groups=0.3),
    "drawn row": Layout(digits=(2, 8), turn=0, drawn=True, heights=(20, 60)),
    "shaded sheet": Layout(lines=(2, 6), digits=(2, 10), shadow=True),
    "shaded row": Layout(shadow=True),
    "desk": Layout(lines=(2, 6), digits=(2, 8), ruling=("", "lines", "squares"), desk=True),
    "zeros": Layout(digits=(3, 4), touching=0.7, zeros=0.85, gap=(0.0, 0.2), heights=(22, 50)),
    "notebook": Layout(
        lines=(8, 10), digits=(4, 8), gap=(0.1, 0.3), between="-−.·", base_lines=True,
        heights=(24, 44),
    ),
    "plus": Layout(lines=(1, 4), digits=(3, 8), gap=(0.3, 0.6), extras="✛"),
    "turned": Layout(lines=(1, 6), digits=(3, 9), turns=(90, 180, 270)),
}  # fmt: skip


def draw_digit(pixels: NDArray[np.uint8], height: float, threshold: float) -> Cover:
    """Return the coverage of a digit whose 20×20 box becomes `height` pixels."""
    image = Image.fromarray(pixels)
    image = image.crop(image.getbbox())
    size = [max(2, round(side * height / 20)) for side in image.size]
    smooth = np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC), float) / 255
    return (5 * (smooth - threshold) + 0.5).clip(0, 1).astype(np.float32)


def draw_path(height: float, rng: np.random.Generator) -> tuple[Cover, int]:
    """Return the coverage of a digit drawn by a thin line without grey levels, and its label."""
    styles = load_styles("world")
    style = styles[rng.integers(len(styles))]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    path = pen_path(style, 1, generator)[0][0].numpy() * height  # [samples, 2]
    path = path - path.min(axis=0) + 2
    page = Image.new("L", (round(path[:, 0].max()) + 3, round(path[:, 1].max()) + 3))
    breaks = 1 + np.flatnonzero(np.hypot(*np.diff(path, axis=0).T) > 0.15 * height)
    for stroke in np.split(path, breaks):
        points = list(map(tuple, stroke))
        ImageDraw.Draw(page).line(points, fill=1, width=int(rng.integers(1, 3)))
    return np.asarray(page.crop(page.getbbox()), dtype=np.float32), style.digit


def draw_plus(height: float, rng: np.random.Generator) -> Cover:
    """Return the coverage of a plus sign drawn by a pen, at a digit's middle."""
    side = max(8, round(height * rng.uniform(0.5, 0.9)))
    page = Image.new("L", (4 * side, 4 * round(height)))
    centre = np.array([2 * side, 2 * height]) + rng.normal(0, 0.05, 2) * side
    for angle in (rng.normal(0, 0.1), np.pi / 2 + rng.normal(0, 0.15)):
        reach = 2 * side * rng.uniform(0.75, 1.0) * np.array([np.cos(angle), np.sin(angle)])
        bend = rng.normal(0, 0.06, 2) * side + centre
        points = [tuple(centre - reach), tuple(bend), tuple(centre + reach)]
        width = max(4, round(4 * height * rng.uniform(0.06, 0.13)))
        ImageDraw.Draw(page).line(points, fill=255, width=width, joint="curve")
    small = page.resize((side, round(height)), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def draw_sign(sign: str, height: float) -> Cover:
    """Return the coverage of a printed sign; the font is matplotlib's."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    page = Image.new("L", (round(2 * height), round(2 * height)))
    font = ImageFont.truetype(str(path), 1.3 * height)
    ImageDraw.Draw(page).text((height, height), sign, fill=255, font=font, anchor="ms")
    columns = np.flatnonzero(np.asarray(page).any(0))
    # The baseline becomes the lower edge, of which a comma's tail is cut off.
    cover = np.asarray(page)[: round(height * 1.05), columns[0] : columns[-1] + 1]
    return (cover / 255).astype(np.float32)


def sheet(layout: Layout, rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Draw an image of this layout; return it with the digits of each of its lines."""
    images, labels = mnist().train.images, mnist().train.labels
    height, threshold = rng.uniform(*layout.heights), rng.uniform(0.35, 0.6)
    pitch = height * rng.uniform(1.5, 2.2)
    num_lines = int(rng.integers(layout.lines[0], layout.lines[1] + 1))
    page = np.zeros((round(pitch * (num_lines + 1)), round(20 * height)), np.float32)
    ruled, texts, widest = np.zeros_like(page), list[str](), 0
    own_colour = rng.random() < layout.own_colour
    ruling = layout.ruling[rng.integers(len(layout.ruling))] if layout.ruling else ""
    pen = max(1, round(height / 25))
    for number in range(num_lines):
        base, x, text = pitch * (number + 1), rng.uniform(0.3, 1.5) * height, ""
        count = int(rng.integers(layout.digits[0], layout.digits[1] + 1))
        for place in range(count):
            is_sign = layout.extras and place % 2 == 1 and rng.random() < 0.4
            is_between = bool(layout.between) and place == count // 2
            if is_sign or is_between:
                is_sign = True
                sign = str(rng.choice(list(layout.extras or layout.between)))
                cover = draw_plus(height, rng) if sign == "✛" else draw_sign(sign, height)
            elif layout.drawn:
                cover, label = draw_path(height, rng)
                text += str(label)
            else:
                index = int(rng.integers(len(images)))
                if layout.zeros and place and rng.random() < layout.zeros:
                    index = int(rng.choice(np.flatnonzero(labels[:20_000].numpy() == 0)))
                size = height * rng.uniform(0.88, 1.12)
                cover = draw_digit(images[index].numpy(), size, threshold)
                text += str(int(labels[index]))
            wobble = 0.0 if is_sign else rng.normal(0, 0.04) * height
            top = max(0, round(base + wobble) - cover.shape[0])
            left, touch = round(x), rng.random() < layout.touching and place > 0
            if touch:
                left = max(0, left - round(height))
                while (
                    page[top : top + len(cover), left : left + cover.shape[1]] * cover
                ).max() > 0.3:
                    left += 1
                left -= 1
            area = page[top : top + len(cover), left : left + cover.shape[1]]
            if ruling == "boxes":
                cell = [
                    left - 0.2 * height,
                    base - 1.25 * height,
                    left + 1.1 * height,
                    base + 0.2 * height,
                ]
                image = Image.fromarray(ruled)
                ImageDraw.Draw(image).rectangle([round(v) for v in cell], outline=1.0, width=pen)
                ruled = np.array(image)
                x = left + 1.3 * height
            np.maximum(area, cover[: area.shape[0], : area.shape[1]], out=area)
            if ruling != "boxes":
                x = left + cover.shape[1] + rng.uniform(*layout.gap) * height
                if layout.groups and rng.random() < layout.groups:
                    x += rng.uniform(0.5, 2.0) * height
        texts.append(text)
        widest = max(widest, round(x + height))
    if layout.base_lines:
        for number in range(num_lines):
            level = round(float(pitch * (number + 1) + rng.normal(-0.02, 0.08) * height))
            ruled[level : level + pen] = 1
    if ruling in ("lines", "squares"):
        step = pitch if ruling == "lines" else height * rng.uniform(0.5, 1.3)
        for row in np.arange(rng.uniform(0, 0.3) * pitch, len(ruled), step):
            ruled[round(row) : round(row) + pen] = 1
        if ruling == "squares":
            for column in np.arange(rng.uniform(0, step), ruled.shape[1], step):
                ruled[:, round(column) : round(column) + pen] = 1
    if layout.drawn:
        return Image.fromarray((255 - 255 * page[:, :widest]).astype(np.uint8)), texts
    image = photograph(page[:, :widest], ruled[:, :widest], own_colour, layout.turn, rng)
    if layout.shadow:
        light = cast_shadow((image.height, image.width), rng)[..., None]
        image = Image.fromarray((np.asarray(image) * light).astype(np.uint8))
    if layout.desk:
        image = on_desk(image, rng)
    if layout.turns:
        image = image.rotate(int(rng.choice(layout.turns)), expand=True)
    return image, texts


def photograph(
    page: Cover, ruled: Cover, own_colour: bool, turn: float, rng: np.random.Generator
) -> Image.Image:
    """Turn coverage into an image: paper, ink, light from one side, blur and noise."""
    angle = rng.uniform(-turn, turn)
    margin = round(6 + page.shape[1] * abs(np.sin(np.radians(angle))) / 2)
    paper, ink = rng.uniform(190, 255, 3), rng.uniform(0, 110, 3)
    rule = ink if own_colour else ink + rng.uniform(0.3, 0.7) * (paper - ink)

    def turned(cover: Cover) -> Cover:
        image = Image.fromarray(np.pad(cover, margin, mode="edge"))
        return np.asarray(image.rotate(angle, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]

    colours = paper + (rule - paper) * turned(ruled)
    colours = colours + (ink - colours) * turned(page)
    light = np.linspace(1, rng.uniform(0.6, 1), colours.shape[1])[None, :, None]
    noisy = colours * light + rng.normal(0, rng.uniform(0, 5), colours.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))


def lines_read(records: list[Prediction]) -> list[str]:
    """Return the accepted digits of each line of an image."""
    lines = groupby(records, key=lambda record: getattr(record, "line", 0))
    read = ("".join(str(r.label) for r in line if r.status == "ok") for _, line in lines)
    return [text for text in read if text]


def main() -> None:
    """Draw the images, predict, and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=40, help="images per kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="only these")
    parser.add_argument("--checkpoint", help="run or file; default: as for mnist-ce evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-failures", type=Path, help="folder for images with errors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained, rows = load_model(options.checkpoint), []
    for number, kind in enumerate(KINDS):
        if kind not in options.kinds:
            continue
        counts, seconds = np.zeros(6, int), 0.0
        for i in range(options.count):
            image, written = sheet(KINDS[kind], np.random.default_rng([options.seed, number, i]))
            start = time.process_time()
            read = lines_read(predict(image, checkpoint=trained, multi=True))
            seconds += time.process_time() - start
            both = " ".join(read), " ".join(written)
            matcher = difflib.SequenceMatcher(None, *both, autojunk=False)
            blocks = [both[0][b.a : b.a + b.size] for b in matcher.get_matching_blocks()]
            found = sum(len(block.replace(" ", "")) for block in blocks)
            same = sum(a == b for a, b in zip(read, written, strict=False))
            total = len("".join(written))
            extra = len("".join(read)) - found
            counts += (read == written, same, len(written), total, found, extra)
            if options.keep_failures and read != written:
                options.keep_failures.mkdir(parents=True, exist_ok=True)
                name = f"{kind}-{i}-{'_'.join(written)}-{'_'.join(read)[:60]}.png"
                image.save(options.keep_failures / name)
        exact, same, lines, total, found, extra = (int(count) for count in counts)
        scores = (exact / options.count, same / lines, total, found / total, extra / total)
        rows.append((kind, options.count, *scores, 1000 * seconds / options.count))
    print_table(
        f"Rows and sheets, {options.count} of each kind, seed {options.seed}, "
        f"checkpoint {options.checkpoint or 'by default'}",
        COLUMNS,
        rows,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
