"""Any image of a digit gives the 28×28 pixels that the clean image gives."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mnist_ce.data.synthetic import generate
from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.mnist_format import MIN_QUALITY
from mnist_ce.reader.page import View, perspective, project
from mnist_ce.reader.pixels import as_mnist_image, resize_to_mnist
from mnist_ce.reader.segmentation import hypotheses

Cover = NDArray[np.float64]
SIDE = 240


@pytest.fixture(scope="module")
def covers() -> list[Cover]:
    """Coverage [240, 240] of four digits, each about 110 pixels high, off the centre."""
    covers = []
    for image in generate(4, seed=3).images.numpy():
        big = Image.fromarray(image).resize((160, 160), Image.Resampling.BICUBIC)
        page = Image.new("L", (SIDE, SIDE))
        page.paste(big.filter(ImageFilter.GaussianBlur(2)), (60, 25))
        covers.append(np.clip((np.asarray(page, float) / 255 - 0.35) * 6, 0, 1))
    return covers


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    best = hypotheses(open_image(image))[0]
    return best.digits[0].pixels


def as_image(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def draw(cover: Cover, paper: float | Cover = 250, ink: float = 20) -> Image.Image:
    return as_image(paper + (ink - paper) * cover)


def on_desk(page: Image.Image) -> Image.Image:
    """The page at half its size, askew and in perspective, on a dark desk."""
    size = (2 * page.width, 2 * page.height)
    corners = np.array([[0.2, 0.25], [0.8, 0.2], [0.85, 0.75], [0.15, 0.8]]) * size
    to_page = np.linalg.inv(perspective(*page.size, corners))
    data = tuple((to_page / to_page[2, 2]).ravel()[:8].tolist())
    seen = page.convert("L").transform(size, Image.Transform.PERSPECTIVE, data, fillcolor=60)
    return seen.filter(ImageFilter.GaussianBlur(1))


def row_of(covers: list[Cover]) -> Image.Image:
    return draw(np.concatenate([cover[:, 50:210] for cover in covers], axis=1))


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def jpeg(image: Image.Image, quality: int, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return Image.open(buffer)


def specks(cover: Cover) -> Image.Image:
    pixels = 245 - 220 * cover
    for y, x in ((8, 9), (225, 30), (12, 228), (222, 200)):
        pixels[y : y + 3, x : x + 3] = 30
    return as_image(pixels)


def boxed(cover: Cover) -> Image.Image:
    page = draw(cover)
    ImageDraw.Draw(page).rectangle([6, 6, SIDE - 8, SIDE - 8], outline=40, width=3)
    return page


NOISE = np.random.default_rng(0).normal(0, 14, (SIDE, SIDE))
LAMP = np.linspace(250, 80, SIDE)[None] * np.linspace(1, 0.7, SIDE)[:, None]
RULED = np.where((np.arange(SIDE) - 20) % 44 < 2, 185.0, 245.0)[:, None]
SHADOW = np.where(np.arange(SIDE) < 130, 240.0, 130.0)
RED, BLUE = np.array([200.0, 40, 40]), np.array([60.0, 80, 190])  # equally bright in grey
BLACK, WHITE = (Image.new("L", (SIDE, SIDE), level) for level in (0, 255))
DESK = np.full((SIDE, SIDE), 255)
DESK[:, :14], DESK[-10:] = 60, 75
ROWS, COLUMNS = np.indices((SIDE, SIDE))
LINES = np.where((ROWS - COLUMNS // 25 + 30) % 48 < 2, 0.3, 1.0)
SQUARES = np.where((COLUMNS + ROWS // 25 + 20) % 48 < 2, 0.3, LINES)
TURNED = Image.Exif()
TURNED[0x0112] = 6

DAMAGE: dict[str, Callable[[Cover], Image.Image]] = {
    "inverted": lambda c: draw(c, 5, 240),
    "low contrast": lambda c: draw(c, 200, 165),
    "low contrast on dark": lambda c: draw(c, 60, 95),
    "1 bit": lambda c: draw(c).convert("1"),
    "16 bits": lambda c: Image.fromarray((65000 - 60000 * c).astype(np.uint16)),
    "32 bits": lambda c: Image.fromarray((65000 - 60000 * c).astype(np.int32)),
    "floats": lambda c: Image.fromarray((1 - c).astype(np.float32)),
    "palette": lambda c: draw(c).convert("RGB").quantize(8),
    "CMYK": lambda c: draw(c).convert("RGB").convert("CMYK"),
    "opaque": lambda c: draw(c).convert("RGBA"),
    "black in alpha": lambda c: Image.merge("LA", (BLACK, as_image(c * 255))),
    "white in alpha": lambda c: Image.merge("LA", (WHITE, as_image(c * 255))),
    "lamp": lambda c: as_image(LAMP * (1 - 0.85 * c)),
    "shadow": lambda c: as_image(SHADOW * (1 - 0.85 * c)),
    "red on blue": lambda c: as_image(BLUE + (RED - BLUE) * c[..., None]),
    "noise": lambda c: as_image(220 - 180 * c + NOISE),
    "JPEG": lambda c: jpeg(draw(c), 20),
    "ruled": lambda c: as_image(RULED * (1 - 0.9 * c)),
    "lines darker than the ink": lambda c: as_image(245 * LINES * (1 - 0.6 * c)),
    "squares darker than the ink": lambda c: as_image(245 * SQUARES * (1 - 0.6 * c)),
    "desk": lambda c: as_image(np.minimum(DESK, 240 - 215 * c)),
    "specks": specks,
    "box of a form": boxed,
    "EXIF": lambda c: jpeg(draw(c).transpose(Image.Transpose.ROTATE_90), 95, exif=TURNED),
    "large": lambda c: draw(c).resize((1900, 1900), Image.Resampling.BICUBIC),
    "small": lambda c: draw(c).resize((60, 60), Image.Resampling.BOX),
    "cropped to the ink": lambda c: draw(c).crop(Image.fromarray(c > 0.3).getbbox()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_gives_the_pixels_of_the_clean_one(
    damage: str, covers: list[Cover]
) -> None:
    for cover in covers:
        # remains of squared paper stick out of the strokes like hairs
        limit = 0.8 if damage.startswith("squares") else 0.9
        assert correlation(pixels_of(DAMAGE[damage](cover)), pixels_of(draw(cover))) > limit


def test_a_shadow_across_the_digit_gives_one_more_hypothesis(covers: list[Cover]) -> None:
    shadow = np.where(np.hypot(ROWS - 220, COLUMNS - 60) < 70, 110.0, 235.0)
    for cover in covers:
        clean = pixels_of(draw(cover))
        shaded = hypotheses(as_image(shadow * (1 - 0.8 * cover)))
        assert max(correlation(h.digits[0].pixels, clean) for h in shaded) > 0.95
        assert len(hypotheses(draw(cover))) == 1


@pytest.mark.parametrize("dark", [False, True])
def test_a_28x28_digit_keeps_its_pixels_unless_it_is_off_the_centre(dark: bool) -> None:
    for image in generate(20, seed=5).images.numpy():
        shown = Image.fromarray(255 - image if dark else image)
        for form in (shown, shown.convert("RGB")):
            np.testing.assert_array_equal(pixels_of(form), image)
    moved = Image.fromarray(np.roll(image, (-4, 4), (0, 1)))
    assert as_mnist_image(moved) is None
    assert correlation(pixels_of(moved), image) > 0.9


def test_quality_is_low_among_specks_and_where_the_border_is_dark(covers: list[Cover]) -> None:
    for image in (draw(covers[0]), row_of(covers)):
        assert hypotheses(image)[0].foreground_quality > MIN_QUALITY
    random = np.random.default_rng(0)
    slope = np.linspace(-20, 40, 120)[None] + np.linspace(0, 20, 90)[:, None]
    dark = as_image(slope + random.normal(0, 2, slope.shape))
    assert hypotheses(dark)[0].foreground_quality < 0.25
    specks = as_image(255.0 * (random.random((150, 150)) > 0.1))
    assert hypotheses(specks)[0].foreground_quality < 0.1


def test_an_empty_image_has_no_hypothesis() -> None:
    for mode, level in (("L", 0), ("L", 90), ("L", 255), ("RGBA", 0)):
        assert hypotheses(Image.new(mode, (120, 90), level)) == []


def test_strokes_of_a_five_with_a_loose_top_stay_together() -> None:
    page = Image.new("L", (200, 200), 255)
    pen = ImageDraw.Draw(page)
    pen.arc([60, 80, 130, 160], 200, 500, fill=0, width=11)
    pen.line([68, 50, 66, 98], fill=0, width=11)
    pen.line([82, 44, 134, 40], fill=0, width=11)  # the top does not touch the rest
    best = hypotheses(page)[0]
    assert best.digits[0].box.top < 40
    assert best.digits[0].box.bottom > 155


def test_digits_are_extracted_line_by_line_from_left_to_right(covers: list[Cover]) -> None:
    rows = np.concatenate([np.concatenate([c[:, 50:210] for c in covers], axis=1)] * 2)
    turned = draw(rows).rotate(4, expand=True, fillcolor=250)
    for page, num_lines in ((row_of(covers), 1), (turned, 2)):
        lines = hypotheses(page, multi=True)[0].lines
        assert [len(line) for line in lines] == [4] * num_lines
        for line in lines:
            lefts = [lattice.whole.box.left for lattice in line]
            assert lefts == sorted(lefts)
    for digit, cover in zip(hypotheses(row_of(covers), multi=True)[0].digits, covers, strict=True):
        assert correlation(digit.pixels, pixels_of(draw(cover))) > 0.9


def test_the_boxes_of_a_form_are_no_digits(covers: list[Cover]) -> None:
    num_rows, cells = 2, [np.pad(cover[20:200, 50:210], 30) for cover in covers]
    rows = np.concatenate([np.concatenate(cells, axis=1)] * num_rows)
    page = draw(np.pad(rows, 50)).rotate(2, fillcolor=250)
    frames = Image.new("L", page.size, 250)
    height, width = cells[0].shape
    for number in range(len(cells) * num_rows):
        row, column = divmod(number, len(cells))
        left, top = 50 + column * width, 50 + row * height
        ImageDraw.Draw(frames).rectangle([left, top, left + width, top + height], None, 20, 4)
    form = ImageChops.darker(page, frames.rotate(2, fillcolor=250))
    lines = hypotheses(form, multi=True)[0].lines
    assert [len(line) for line in lines] == [len(covers)] * num_rows
    for boxed_digit, clean in zip(lines[0], hypotheses(page, multi=True)[0].lines[0], strict=True):
        assert correlation(boxed_digit.whole.pixels, clean.whole.pixels) > 0.9


@pytest.mark.parametrize("case", ["as drawn", "turned by EXIF"])
def test_boxes_are_in_pixels_of_the_upright_image(case: str, covers: list[Cover]) -> None:
    page, factor = draw(covers[0]), 1.0
    inked = np.array(page.point(lambda level: 255 * (level < 120)).getbbox())
    if case == "turned by EXIF":
        large = page.resize((1920, 1920)).transpose(Image.Transpose.ROTATE_90)
        page, factor = jpeg(large, 95, exif=TURNED), 8
    for multi in (False, True):
        best = hypotheses(open_image(page), multi=multi)[0]
        box = project(best.digits[0].box, best.to_image)
        edges = (box.left, box.top, box.right, box.bottom)
        np.testing.assert_allclose(edges, factor * inked, atol=max(3 * factor, 4))


@pytest.mark.parametrize(("degrees", "desk"), [(0, True), (90, True), (180, False), (270, False)])
def test_digits_of_a_turned_page_are_upright(degrees: int, desk: bool) -> None:
    digits = generate(60, seed=3)
    chosen = [int(np.flatnonzero(digits.labels.numpy() == label)[0]) for label in (9, 2, 9, 2, 7)]
    row = np.concatenate([np.pad(digits.images[i].numpy(), 12) for i in chosen], axis=1)
    upright = Image.fromarray(255 - row).resize((780, 156), Image.Resampling.BICUBIC)
    page = upright.rotate(degrees, expand=True)
    best = hypotheses(on_desk(page) if desk else page, multi=True)[0]
    assert best.rotation == -degrees % 360
    assert len(best.digits) == 5
    if not desk:
        for digit, clean in zip(
            best.digits, hypotheses(upright, multi=True)[0].digits, strict=True
        ):
            assert correlation(digit.pixels, clean.pixels) > 0.95
        inked = page.point(lambda level: 255 * (level < 120)).getbbox()
        boxes = np.array([project(digit.box, best.to_image) for digit in best.digits])
        (top, left), (bottom, right) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        assert inked == pytest.approx((left, top, right, bottom), abs=4)


@pytest.mark.parametrize("shade", [0.6, 0.8])
def test_half_a_page_in_the_shade_is_no_page(shade: float, covers: list[Cover]) -> None:
    for light in (COLUMNS < 130, ROWS < 130, ROWS + COLUMNS < 230):
        page = as_image(np.where(light, 1.0, shade) * (240 - 215 * covers[0]))
        assert View.of(page).page() is None
    assert View.of(on_desk(draw(covers[0]))).page() is not None


def test_touching_digits_have_a_cut_between_them_and_a_narrow_one_has_none(
    covers: list[Cover],
) -> None:
    levels = np.concatenate([covers[0][30:180, 70:200], covers[1][30:180, 70:200]], axis=1)
    levels[80:84, 100:160] = 1
    (lattice,) = hypotheses(draw(np.pad(levels, 20)))[0].lines[0]
    assert lattice.num_pieces > 1
    joint = lattice.whole.box
    halves = [lattice.digits[0, k].box.right for k in range(1, lattice.num_pieces)]
    assert any(abs(right - (joint.left + joint.right) / 2) < 0.2 * joint.width for right in halves)
    (narrow,) = hypotheses(draw(covers[0]))[0].lines[0]
    assert narrow.num_pieces == 1


def test_a_plus_sign_is_no_four(covers: list[Cover]) -> None:
    page = draw(np.concatenate([covers[0], covers[1], covers[2]], axis=1))
    ImageDraw.Draw(page).rectangle([250, 20, 470, 220], fill=250)
    for ends in ([(320, 118), (405, 122)], [(362, 75), (360, 165)]):
        ImageDraw.Draw(page).line(ends, fill=30, width=11)
    marks = [digit.mark for digit in hypotheses(page, multi=True)[0].digits]
    assert marks == [None, "a plus sign", None]
    assert hypotheses(page.crop((300, 40, 425, 200)))[0].digits[0].mark == "a plus sign"


def test_distant_components_are_offered_as_one_digit_too() -> None:
    """A 4 whose bar does not reach its stem; the gap is a fifth of its height."""
    page = Image.new("L", (300, 300), 235)
    pen = ImageDraw.Draw(page)
    pen.line([(100, 80), (95, 150), (130, 152)], fill=40, width=7)
    pen.line([(165, 80), (162, 215)], fill=40, width=7)
    near, wide = (hypothesis.digits[0].box.width for hypothesis in hypotheses(page))
    assert near < 20  # the stem alone
    assert wide > 60
    (row,) = hypotheses(page, multi=True)
    ((lattice,),) = row.lines  # in a row they may be one or two
    assert {(0, 1), (1, 2), (0, 2)} == set(lattice.digits)


@pytest.mark.parametrize("mode", ["L", "RGB", "F", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (50, 1), (1, 50), (1000, 20), (30, 1500), (4000, 80)])
def test_the_narrowest_images_pass_every_stage(size: tuple[int, int], mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    for hypothesis in hypotheses(open_image(image)):
        assert hypothesis.digits[0].pixels.shape == (28, 28)
    assert resize_to_mnist(image).shape == (28, 28)
