"""Any picture of a digit becomes the glyph that the clean picture becomes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mnist_ce.data.synthetic.generate import generate
from mnist_ce.reader import draw_strip, find_digits, open_picture
from mnist_ce.reader.binarize import even_out, find_ink, merge_colours, obvious_polarity
from mnist_ce.reader.components import find_parts, group_parts
from mnist_ce.reader.detector import SOUND, demanded
from mnist_ce.reader.image_io import to_planes
from mnist_ce.reader.mnist_like import as_it_is, whole_picture
from mnist_ce.reader.pool import Options, prepare
from mnist_ce.reader.segmentation import Reading
from mnist_ce.reader.split_touching import cuts
from mnist_ce.reader.stroke_width import normalise_weight, stroke_width
from mnist_ce.system.errors import ImageError

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


def glyph_of(picture: Image.Image) -> NDArray[np.uint8]:
    readings = find_digits(open_picture(picture))
    assert readings, "no ink found"
    assert readings[0].num_found == 1
    return readings[0].digits[0].glyph


def picture(cover: Cover, paper: float | Cover = 250, ink: float = 20) -> Image.Image:
    return Image.fromarray((paper + (ink - paper) * cover).clip(0, 255).astype(np.uint8))


def likeness(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
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
    picture(cover).save(buffer, "JPEG", quality=20)
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
    page = picture(cover)
    ImageDraw.Draw(page).rectangle([6, 6, SIDE - 8, SIDE - 8], outline=40, width=3)
    return page


def exif_turned(cover: Cover) -> Image.Image:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture(cover).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif, quality=95)
    return Image.open(buffer)


def dark_lines(cover: Cover, squared: bool) -> Image.Image:
    page = np.ones((SIDE, SIDE))
    rows, columns = np.indices(page.shape)
    page[(rows - columns // 25 + 30) % 48 < 2] = 0.3
    if squared:
        page[(columns + rows // 25 + 20) % 48 < 2] = 0.3
    return Image.fromarray((245 * page * (1 - 0.6 * cover)).astype(np.uint8))


DAMAGE: dict[str, Callable[[Cover], Image.Image]] = {
    "inverted": lambda c: picture(c, 5, 240),
    "low contrast": lambda c: picture(c, 200, 165),
    "low contrast on dark": lambda c: picture(c, 60, 95),
    "1 bit": lambda c: picture(c).convert("1"),
    "16 bits": lambda c: Image.fromarray((65000 - 60000 * c).astype(np.uint16)),
    "32 bits": lambda c: Image.fromarray((65000 - 60000 * c).astype(np.int32)),
    "floats": lambda c: Image.fromarray((1 - c).astype(np.float32)),
    "palette": lambda c: picture(c).convert("RGB").quantize(8),
    "CMYK": lambda c: picture(c).convert("RGB").convert("CMYK"),
    "grey and alpha": lambda c: picture(c).convert("LA"),
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
    "large": lambda c: picture(c).resize((1900, 1900), Image.Resampling.BICUBIC),
    "small": lambda c: picture(c).resize((60, 60), Image.Resampling.BOX),
    "cropped to the ink": lambda c: picture(c).crop(Image.fromarray(c > 0.3).getbbox()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_picture_gives_the_glyph_of_the_clean_one(
    damage: str, covers: list[Cover]
) -> None:
    for cover in covers:
        clean = glyph_of(picture(cover))
        # what is left of squared paper sticks out of the strokes like hairs
        limit = 0.8 if damage.startswith("squares") else 0.9
        assert likeness(glyph_of(DAMAGE[damage](cover)), clean) > limit


def test_the_glyph_lies_as_mnist_lies(covers: list[Cover]) -> None:
    for cover in covers:
        glyph = glyph_of(picture(cover)).astype(float)
        rows, columns = np.flatnonzero(glyph.any(1)), np.flatnonzero(glyph.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert (glyph.sum(1) @ np.arange(28)) / glyph.sum() == pytest.approx(14, abs=0.6)


@pytest.mark.parametrize("dark", [False, True])
def test_a_28x28_glyph_is_taken_as_it_is(dark: bool) -> None:
    for image in generate(20, seed=5).images.numpy():
        shown = Image.fromarray(255 - image if dark else image)
        for form in (shown, shown.convert("RGB")):
            np.testing.assert_array_equal(glyph_of(form), image)


@pytest.mark.slow
def test_every_training_image_of_mnist_is_taken_as_it_is(mnist_dir: Path) -> None:
    from mnist_ce.data.dataset import load_dataset

    for image in load_dataset("mnist", mnist_dir).train.images.numpy():
        glyph = as_it_is(Image.fromarray(image))
        assert glyph is not None
        assert (glyph == image).all()


def test_a_28x28_drawing_off_the_centre_is_brought_there(covers: list[Cover]) -> None:
    image = generate(1, seed=5).images.numpy()[0]
    moved = np.roll(image, (-4, 4), (0, 1))
    assert as_it_is(Image.fromarray(moved)) is None
    assert likeness(glyph_of(Image.fromarray(moved)), image) > 0.9


@pytest.mark.parametrize("size", [240, 900])
def test_ink_is_sound_whatever_its_size_and_number(covers: list[Cover], size: int) -> None:
    page = Image.new("L", (size, size), 250)
    page.paste(picture(covers[0]), (30, 0))
    assert find_digits(page)[0].soundness > SOUND
    row = np.concatenate([cover[:, 50:210] for cover in covers], axis=1)
    assert find_digits(picture(row))[0].soundness > SOUND


def test_dark_that_creeps_in_from_the_border_is_not_sound() -> None:
    slope = np.linspace(-20, 40, 120)[None] + np.linspace(0, 20, 90)[:, None]
    grain = np.random.default_rng(0).normal(0, 2, slope.shape)
    readings = find_digits(Image.fromarray((slope + grain).clip(0, 255).astype(np.uint8)))
    assert readings
    assert readings[0].soundness < 0.25


def test_specks_everywhere_are_not_sound() -> None:
    specks = np.random.default_rng(0).random((150, 150)) > 0.1
    readings = find_digits(Image.fromarray((255 * specks).astype(np.uint8)))
    assert readings
    assert readings[0].soundness < 0.1


def test_unsound_ink_must_look_more_like_a_digit() -> None:
    assert demanded(-1.5, 1.0) == demanded(-1.5, SOUND) == -1.5
    assert -1.5 < demanded(-1.5, 0.3) < demanded(-1.5, 0.1) < demanded(-1.5, 0.0) < math.inf


@pytest.mark.parametrize("level", [0, 90, 255])
def test_an_empty_page_has_no_ink(level: int) -> None:
    assert find_digits(Image.new("L", (120, 90), level)) == []


def test_an_empty_transparent_canvas_has_no_ink() -> None:
    assert find_digits(Image.new("RGBA", (120, 90), (0, 0, 0, 0))) == []


def test_strokes_of_a_five_with_a_loose_top_stay_together() -> None:
    page = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(page)
    draw.arc([60, 80, 130, 160], 200, 500, fill=0, width=11)
    draw.line([68, 50, 66, 98], fill=0, width=11)
    draw.line([82, 44, 134, 40], fill=0, width=11)  # the top does not touch the rest
    readings = find_digits(page)
    assert readings[0].num_found == 1
    top, _, bottom, _ = readings[0].digits[0].box
    assert top < 40
    assert bottom > 155


def test_digits_in_a_row_are_counted_and_read_from_left_to_right(covers: list[Cover]) -> None:
    row = np.concatenate([cover[:, 50:210] for cover in covers], axis=1)
    assert find_digits(picture(row))[0].num_found == 4
    reading = find_digits(picture(row), multi=True)[0]
    assert len(reading.digits) == 4
    for digit, cover in zip(reading.digits, covers, strict=True):
        assert likeness(digit.glyph, glyph_of(picture(cover))) > 0.9


def test_digits_that_touch_are_offered_cut(covers: list[Cover]) -> None:
    levels = np.concatenate([covers[0][30:180, 70:200], covers[1][30:180, 70:200]], axis=1)
    levels[80:84, 100:160] = 1
    tight = levels[np.ix_(levels.any(1), levels.any(0))].astype(np.float32)
    ways = {len(pieces) for pieces in cuts(tight)}
    assert 2 in ways
    assert all(sum(p.shape[1] for p in pieces) == tight.shape[1] for pieces in cuts(tight))


def test_a_narrow_digit_is_not_cut() -> None:
    assert list(cuts(np.ones((40, 20), np.float32))) == []


@pytest.mark.parametrize("width", [5, 9, 15])
def test_stroke_width_of_a_bar(width: int) -> None:
    mask = np.zeros((120, 60), bool)
    mask[5:115, 20 : 20 + width] = True
    assert stroke_width(mask) == pytest.approx(width, abs=1)


@pytest.mark.parametrize("width", [1, 3, 40])
def test_lines_are_brought_to_a_usual_weight(width: int) -> None:
    ring = Image.new("L", (300, 300))
    ImageDraw.Draw(ring).ellipse([20, 20, 280, 280], outline=255, width=width)
    levels = (np.asarray(ring) / 255).astype(np.float32)
    drawn = normalise_weight(levels[20:281, 20:281])
    unit = max(np.ptp(np.flatnonzero((drawn > 0.5).any(a))) + 1 for a in (0, 1)) / 20
    assert 1.6 < stroke_width(drawn > 0.5) / unit < 3.7


def test_evening_out_removes_a_slope_and_leaves_ink() -> None:
    light = np.linspace(0.4, 0.9, 100, dtype=np.float32)[None].repeat(80, 0)
    light[30:50, 45:50] *= 0.3
    even = even_out(light)
    assert np.delete(even, np.s_[45:50], axis=1).std() < 0.02
    assert even[40, 47] < 0.4


@pytest.mark.parametrize(("back", "front"), [(0.9, 0.2), (0.1, 0.8)])
def test_polarity(back: float, front: float) -> None:
    light = np.full((100, 100), back, np.float32)
    light[20:80, 45:52] = front
    assert obvious_polarity(light) is (back > front)
    ink = find_ink(light, back > front)
    assert ink is not None
    assert ink.mask[50, 48]
    assert not ink.mask[50, 20]
    assert len(find_parts(ink)[1]) == 1


def test_grey_is_kept_where_colours_tell_nothing_more(covers: list[Cover]) -> None:
    planes = np.stack([1 - 0.9 * covers[0]] * 3, axis=-1).astype(np.float32)
    np.testing.assert_allclose(merge_colours(planes), planes[..., 0], atol=1e-5)


def test_parts_far_away_are_another_group() -> None:
    light = np.ones((100, 300), np.float32)
    light[20:80, 40:46] = light[20:80, 240:246] = 0.1
    ink = find_ink(light, True)
    assert ink is not None
    labels, parts = find_parts(ink)
    assert len(group_parts(parts, labels)) == 2


def test_distant_pieces_are_offered_as_one_digit_too() -> None:
    """A 4 whose bar does not reach its stem; the gap is a fifth of its height."""
    page = Image.new("L", (300, 300), 235)
    pen = ImageDraw.Draw(page)
    pen.line([(100, 80), (95, 150), (130, 152)], fill=40, width=7)
    pen.line([(165, 80), (162, 215)], fill=40, width=7)

    def width(reading: Reading) -> int:
        _, left, _, right = reading.digits[0].box
        return right - left

    near, wide = find_digits(page)
    assert width(near) < 20  # the stem alone
    assert width(wide) > 60
    (row,) = find_digits(page, multi=True)
    assert width(row) < 60  # in a row, what is far apart is two


def test_planes_of_any_size_come_at_a_size_to_work_at() -> None:
    for size in ((5, 9), (300, 200), (1, 50), (4000, 100)):
        height, width, channels = to_planes(open_picture(Image.new("L", size, 200))).shape
        assert channels == 1
        assert 80 <= max(height, width) <= 1000


@pytest.mark.parametrize("mode", ["L", "RGB", "F", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (50, 1), (1, 50), (1000, 20), (30, 1500), (4000, 80)])
def test_the_narrowest_pictures_that_are_taken_are_read(size: tuple[int, int], mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    find_digits(open_picture(image))  # whatever it finds
    assert whole_picture(image).shape == (28, 28)


def test_narrower_ones_are_told() -> None:
    with pytest.raises(ImageError, match="too narrow"):
        open_picture(Image.new("L", (51, 1)))


def test_a_picture_of_the_callers_stays_as_it_is(tmp_path: Path) -> None:
    Image.new("L", (3000, 2400), 255).save(tmp_path / "page.jpg")
    with Image.open(tmp_path / "page.jpg") as image:
        assert max(open_picture(image).size) <= 1500
        assert image.size == (3000, 2400)


def test_the_whole_range_of_float32_is_light() -> None:
    values = np.tile(np.array([3e38, -3e38], dtype=np.float32), (40, 20))
    planes = to_planes(open_picture(Image.fromarray(values)))
    assert (planes.min(), planes.max()) == (0, 1)


def test_other_pictures_than_digits_may_have_more_bits() -> None:
    image = generate(1, seed=5).images.numpy()[0]
    deep = Image.fromarray(image.astype(np.uint16) * 257)
    np.testing.assert_allclose(whole_picture(deep), image, atol=1)


def test_a_bug_costs_the_answer_about_one_picture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of bounds")

    monkeypatch.setattr("mnist_ce.reader.pool.find_digits", fail)
    prepared = prepare(Image.new("L", (9, 9)), Options())
    assert prepared.error == (
        "the picture defeats this program, please report it: IndexError: out of bounds"
    )


def test_other_pictures_than_digits_are_only_shrunk() -> None:
    image = generate(1, seed=5).images.numpy()[0]
    np.testing.assert_array_equal(whole_picture(Image.fromarray(image)), image)
    bright = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.NEAREST)
    np.testing.assert_allclose(whole_picture(bright), image, atol=1)


def test_the_strip_shows_every_stage(covers: list[Cover]) -> None:
    reading = find_digits(picture(covers[0]), keep_stages=True)[0]
    assert {"light", "even", "ink", "mask", "digit", "glyph"} <= set(reading.stages)
    strip = draw_strip(reading.stages)
    assert strip.width == len(reading.stages) * 244
    assert math.isfinite(np.asarray(strip).std())
