"""Any image of a digit gives the 28×28 pixels that the clean image gives."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader.detector import MIN_QUALITY
from mnist_ce.reader.image_io import draw_stages, open_image
from mnist_ce.reader.mnist_like import as_mnist_image, resize_to_mnist
from mnist_ce.reader.segmentation import Hypothesis, hypotheses, split_touching_digits

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
    found = hypotheses(open_image(image))
    assert found, "no foreground found"
    assert found[0].num_found == 1
    return found[0].digits[0].pixels


def draw(cover: Cover, paper: float | Cover = 250, ink: float = 20) -> Image.Image:
    return Image.fromarray((paper + (ink - paper) * cover).clip(0, 255).astype(np.uint8))


def row_of(covers: list[Cover]) -> Image.Image:
    return draw(np.concatenate([cover[:, 50:210] for cover in covers], axis=1))


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def lamp(cover: Cover) -> Image.Image:
    slope = np.linspace(250, 80, SIDE)[None] * np.linspace(1, 0.7, SIDE)[:, None]
    return Image.fromarray((slope * (1 - 0.85 * cover)).astype(np.uint8))


def shadow(cover: Cover) -> Image.Image:
    light = np.where(np.arange(SIDE) < 130, 240.0, 130.0)[None].repeat(SIDE, 0)
    return Image.fromarray((light * (1 - 0.85 * cover)).astype(np.uint8))


def coloured(cover: Cover) -> Image.Image:
    # equally bright in grey: only the colour tells ink from paper
    red, blue = np.array([200.0, 40, 40]), np.array([60.0, 80, 190])
    return Image.fromarray((blue + (red - blue) * cover[..., None]).astype(np.uint8))


def alpha(cover: Cover, colour: int) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 4), colour, np.uint8)
    pixels[..., 3] = cover * 255
    return Image.fromarray(pixels)


def noisy(cover: Cover) -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = 220 - 180 * cover + rng.normal(0, 14, cover.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(cover: Cover) -> Image.Image:
    buffer = io.BytesIO()
    draw(cover).save(buffer, "JPEG", quality=20)
    return Image.open(buffer)


def ruled(cover: Cover) -> Image.Image:
    page = np.full((SIDE, SIDE), 245.0)
    page[20::44] = page[21::44] = 185
    return Image.fromarray((page * (1 - 0.9 * cover)).astype(np.uint8))


def desk(cover: Cover) -> Image.Image:
    pixels = 240 - 215 * cover
    pixels[:, :14], pixels[-10:] = 60, 75
    return Image.fromarray(pixels.astype(np.uint8))


def specks(cover: Cover) -> Image.Image:
    pixels = 245 - 220 * cover
    for y, x in ((8, 9), (225, 30), (12, 228), (222, 200)):
        pixels[y : y + 3, x : x + 3] = 30
    return Image.fromarray(pixels.astype(np.uint8))


def boxed(cover: Cover) -> Image.Image:
    page = draw(cover)
    ImageDraw.Draw(page).rectangle([6, 6, SIDE - 8, SIDE - 8], outline=40, width=3)
    return page


def exif_turned(cover: Cover) -> Image.Image:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    draw(cover).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif, quality=95)
    return Image.open(buffer)


def dark_lines(cover: Cover, squared: bool) -> Image.Image:
    page = np.ones((SIDE, SIDE))
    rows, columns = np.indices(page.shape)
    page[(rows - columns // 25 + 30) % 48 < 2] = 0.3
    if squared:
        page[(columns + rows // 25 + 20) % 48 < 2] = 0.3
    return Image.fromarray((245 * page * (1 - 0.6 * cover)).astype(np.uint8))


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
    "grey and alpha": lambda c: draw(c).convert("LA"),
    "black in alpha": lambda c: alpha(c, 0),
    "white in alpha": lambda c: alpha(c, 255),
    "lamp": lamp,
    "shadow": shadow,
    "red on blue": coloured,
    "noise": noisy,
    "JPEG": jpeg,
    "ruled": ruled,
    "lines darker than the ink": lambda c: dark_lines(c, False),
    "squares darker than the ink": lambda c: dark_lines(c, True),
    "desk": desk,
    "specks": specks,
    "box of a form": boxed,
    "EXIF": exif_turned,
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


def test_digits_are_sized_and_centred_as_in_mnist(covers: list[Cover]) -> None:
    for cover in covers:
        pixels = pixels_of(draw(cover)).astype(float)
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert (pixels.sum(1) @ np.arange(28)) / pixels.sum() == pytest.approx(14, abs=0.6)


@pytest.mark.parametrize("dark", [False, True])
def test_a_28x28_digit_keeps_its_pixels(dark: bool) -> None:
    for image in generate(20, seed=5).images.numpy():
        shown = Image.fromarray(255 - image if dark else image)
        for form in (shown, shown.convert("RGB")):
            np.testing.assert_array_equal(pixels_of(form), image)


def test_a_28x28_drawing_off_the_centre_is_centred() -> None:
    image = generate(1, seed=5).images.numpy()[0]
    moved = np.roll(image, (-4, 4), (0, 1))
    assert as_mnist_image(Image.fromarray(moved)) is None
    assert correlation(pixels_of(Image.fromarray(moved)), image) > 0.9


@pytest.mark.parametrize("size", [240, 900])
def test_quality_is_high_whatever_the_size_and_number(covers: list[Cover], size: int) -> None:
    page = Image.new("L", (size, size), 250)
    page.paste(draw(covers[0]), (30, 0))
    for image in (page, row_of(covers)):
        assert hypotheses(image)[0].foreground_quality > MIN_QUALITY


def test_quality_is_low_where_darkness_comes_in_from_the_border() -> None:
    slope = np.linspace(-20, 40, 120)[None] + np.linspace(0, 20, 90)[:, None]
    grain = np.random.default_rng(0).normal(0, 2, slope.shape)
    found = hypotheses(Image.fromarray((slope + grain).clip(0, 255).astype(np.uint8)))
    assert found[0].foreground_quality < 0.25


def test_quality_is_low_among_specks() -> None:
    specks = np.random.default_rng(0).random((150, 150)) > 0.1
    found = hypotheses(Image.fromarray((255 * specks).astype(np.uint8)))
    assert found[0].foreground_quality < 0.1


@pytest.mark.parametrize(
    "empty",
    [
        *(Image.new("L", (120, 90), level) for level in (0, 90, 255)),
        Image.new("RGBA", (120, 90), (0, 0, 0, 0)),
    ],
)
def test_an_empty_image_has_no_hypothesis(empty: Image.Image) -> None:
    assert hypotheses(empty) == []


def test_strokes_of_a_five_with_a_loose_top_stay_together() -> None:
    page = Image.new("L", (200, 200), 255)
    pen = ImageDraw.Draw(page)
    pen.arc([60, 80, 130, 160], 200, 500, fill=0, width=11)
    pen.line([68, 50, 66, 98], fill=0, width=11)
    pen.line([82, 44, 134, 40], fill=0, width=11)  # the top does not touch the rest
    best = hypotheses(page)[0]
    assert best.num_found == 1
    assert best.digits[0].box.top < 40
    assert best.digits[0].box.bottom > 155


def test_digits_in_a_row_are_counted_and_extracted_from_left_to_right(
    covers: list[Cover],
) -> None:
    assert hypotheses(row_of(covers))[0].num_found == 4
    digits = hypotheses(row_of(covers), multi=True)[0].digits
    for digit, cover in zip(digits, covers, strict=True):
        assert correlation(digit.pixels, pixels_of(draw(cover))) > 0.9


def test_touching_digits_are_split(covers: list[Cover]) -> None:
    levels = np.concatenate([covers[0][30:180, 70:200], covers[1][30:180, 70:200]], axis=1)
    levels[80:84, 100:160] = 1
    tight = levels[np.ix_(levels.any(1), levels.any(0))].astype(np.float32)
    splits = list(split_touching_digits(tight))
    assert 2 in map(len, splits)
    assert all(sum(p.shape[1] for p in pieces) == tight.shape[1] for pieces in splits)


def test_a_narrow_digit_is_not_split() -> None:
    assert list(split_touching_digits(np.ones((40, 20), np.float32))) == []


def test_distant_components_are_offered_as_one_digit_too() -> None:
    """A 4 whose bar does not reach its stem; the gap is a fifth of its height."""
    page = Image.new("L", (300, 300), 235)
    pen = ImageDraw.Draw(page)
    pen.line([(100, 80), (95, 150), (130, 152)], fill=40, width=7)
    pen.line([(165, 80), (162, 215)], fill=40, width=7)

    def width(hypothesis: Hypothesis) -> int:
        return hypothesis.digits[0].box.width

    near, wide = hypotheses(page)
    assert width(near) < 20  # the stem alone
    assert width(wide) > 60
    (row,) = hypotheses(page, multi=True)
    assert width(row) < 60  # in a row they are two


@pytest.mark.parametrize("mode", ["L", "RGB", "F", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (50, 1), (1, 50), (1000, 20), (30, 1500), (4000, 80)])
def test_the_narrowest_images_pass_every_stage(size: tuple[int, int], mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    for hypothesis in hypotheses(open_image(image)):
        assert hypothesis.digits[0].pixels.shape == (28, 28)
    assert resize_to_mnist(image).shape == (28, 28)


def test_stages_are_kept_only_if_wanted(covers: list[Cover]) -> None:
    assert hypotheses(draw(covers[0]))[0].stages == {}
    stages = hypotheses(draw(covers[0]), stages={})[0].stages
    assert list(stages) == ["light", "even", "ink", "mask", "close", "digit", "glyph"]
    montage = np.asarray(draw_stages(stages))
    assert montage.shape[1] == len(stages) * 244
    assert montage.std() > 0
