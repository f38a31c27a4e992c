"""Decoding and preprocessing of images: what cannot be read is an error in one line."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from mnist_ce.reader import image_io
from mnist_ce.reader import pool as pool_module
from mnist_ce.reader.image_io import each_image, find_images, open_image
from mnist_ce.reader.pixels import to_float_image
from mnist_ce.reader.pool import PreprocessOptions, preprocess
from mnist_ce.system.errors import ImageError, ImageTooLargeError


def png(side: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + header, b"IDAT" + data, b"IEND"):
        content += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    return content


def truncated(path: Path) -> None:
    Image.effect_noise((60, 60), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])


NOT_READ = "is not an image that can be read: PNG, JPEG, WebP, GIF, BMP, TIFF or HEIC"
BOMB = zlib.compress(bytes(12_001 * 12_000))
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello"), "not an image"),
    "truncated": (truncated, "damaged"),
    "folder": (lambda path: path.mkdir(), "a folder that holds no images"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "header of 60000×60000": (lambda path: path.write_bytes(png(60_000, b"x")), "pixels"),
    "bomb": (lambda path: path.write_bytes(png(12_000, BOMB)), "pixels"),
    "damaged data": (lambda path: path.write_bytes(png(50, b"nothing packed")), "damaged"),
    "PDF": (lambda path: path.write_bytes(b"%PDF-1.7"), "a PDF: export its pages as PNG"),
    "SVG": (lambda path: path.write_text("<?xml version='1.0'?>\n<svg/>"), "an SVG drawing"),
    "like SVG": (lambda path: path.write_text("<!DOCTYPE svg" * 40), "an SVG drawing"),
    "EPS": (lambda path: Image.new("L", (9, 9)).save(path, "EPS"), NOT_READ),
    "PSD": (lambda path: path.write_bytes(b"8BPS\0\1" + bytes(40)), NOT_READ),
    "IDX": (lambda path: path.write_bytes(b"\0\0\x08\x03" + bytes(99)), "an IDX file"),
    "NPZ": (lambda path: path.write_bytes(b"PK\x03\x04"), "unpack it, or pass its images"),
    "CSV": (lambda path: path.write_text("label,p0,p1,p2,p3\n7,0,0,0,0\n"), "a table (CSV)"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com"), "git lfs pull"),
    "a thread": (lambda path: Image.new("L", (51, 1)).save(path), "too narrow"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_error_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
@pytest.mark.parametrize(
    "content",
    [png(60_000, b"x"), png(20_000, b"x"), png(50, b"nothing packed"), png(9, b"")[:20]],
    ids=["bomb", "many pixels", "damaged data", "damaged header"],
)
def test_base64_text_has_the_errors_of_its_bytes(content: bytes, prefix: bytes) -> None:
    error = preprocess(content, PreprocessOptions())[0].error
    text = prefix + base64.b64encode(content)
    assert preprocess(text, PreprocessOptions())[0].error == error
    assert error is not None
    assert "internal error" not in error


def frame_header(jpeg: bytes, side: int) -> bytes:
    """Return a JPEG whose header claims another size; the missing rest of its data is grey."""
    marker = next(m for m in (b"\xff\xc0\0\x0b", b"\xff\xc2\0\x0b") if m in jpeg)
    place = jpeg.index(marker) + 5
    return jpeg[:place] + struct.pack(">HH", side, side) + jpeg[place + 4 :]


def test_a_jpeg_of_200_megapixels_is_decoded_at_an_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 200).save(buffer, "JPEG")
    image = open_image(frame_header(buffer.getvalue(), 14_200))
    assert max(image.size) <= 1800
    assert image.info["full_size"] == (14_200, 14_200)
    with pytest.raises(ImageTooLargeError, match="more than 250,000,000"):
        open_image(frame_header(buffer.getvalue(), 16_000))
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 200).save(buffer, "JPEG", progressive=True)
    with pytest.raises(ImageTooLargeError, match="more than 120,000,000"):
        open_image(frame_header(buffer.getvalue(), 14_200))


def test_heic_is_read_by_an_extra_that_is_named_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(path)
    assert open_image(path).size == (64, 48)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'mnist-ce\[heic\]'"):
        open_image(path)


@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
def test_base64_text_is_decoded(prefix: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("L", (30, 20), 9).save(buffer, "PNG")
    image = open_image(prefix + base64.encodebytes(buffer.getvalue()))
    assert (image.size, image.getpixel((0, 0))) == ((30, 20), 9)


@pytest.mark.parametrize("mode", ["LA", "I;16", "F", "RGBA"])
def test_a_large_image_is_reduced_whatever_its_mode(mode: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (2100, 50), dtype=np.uint8)
    image = Image.fromarray(levels).convert("I" if mode == "I;16" else mode).convert(mode)
    image.save(tmp_path / "x.tif", tiffinfo={0x0112: 6})
    opened = open_image(tmp_path / "x.tif")
    assert (opened.size, opened.info) == ((1050, 25), {"full_size": (2100, 50)})
    means = levels.reshape(1050, 2, 25, 2).mean((1, 3)).T[:, ::-1]
    shown = np.asarray(opened, dtype=float)
    np.testing.assert_allclose(shown if shown.ndim == 2 else shown[..., 0], means, atol=1)


def test_an_image_in_memory_is_not_changed(tmp_path: Path) -> None:
    Image.new("L", (3000, 2400), 255).save(tmp_path / "page.jpg")
    with Image.open(tmp_path / "page.jpg") as image:
        for source in (image, Image.new("L", (3000, 2400), 77)):
            assert max(open_image(source).size) <= 1500
            assert source.size == (3000, 2400)


@pytest.mark.parametrize("size", [(5, 9), (300, 200), (1, 50), (4000, 100)])
def test_float_images_have_a_working_size(size: tuple[int, int]) -> None:
    height, width, channels = to_float_image(open_image(Image.new("L", size, 200))).shape
    assert channels == 1
    assert 80 <= max(height, width) <= 1000


def test_the_whole_range_of_float32_is_scaled() -> None:
    values = np.tile(np.array([3e38, -3e38], dtype=np.float32), (40, 20))
    pixels = to_float_image(open_image(Image.fromarray(values)))
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_images_are_files_folders_patterns_and_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mnist_ce")
    monkeypatch.chdir(tmp_path)
    Path("none").mkdir()
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "[1].png",
        "._a.png",
        "sub [2]/c.png",
        ".git/d.png",
    ):
        Path("a folder", name).parent.mkdir(exist_ok=True, parents=True)
        Path("a folder", name).touch()

    def below(*names: str) -> list[Path]:
        return [Path("a folder", name) for name in names]

    patterns = ["a folder", "a folder/?.png", "a folder/[1].png", "gone*.png", "none", "-"]
    files = below("[1].png", "a.JPG", "b.png", "b.png", "[1].png")
    assert list(find_images(patterns)) == [*files, Path("gone*.png"), Path("none"), None]
    assert "2 of 5 files skipped, hidden or no images by name" in caplog.text
    files = below("[1].png", "a.JPG", "b.png", "sub [2]/c.png")
    assert list(find_images(["a folder"], recursive=True)) == files


@pytest.mark.parametrize("images", [3, None, {"a": 1}, ["x.png", 3.5], [("x.png", 1)]])
def test_another_type_is_named(images: object) -> None:
    with pytest.raises(TypeError, match=r"not (int|NoneType|dict|float|tuple)$"):
        list(each_image(images))
    with pytest.raises(TypeError, match="open in binary mode: StringIO"):
        list(each_image(io.StringIO("x")))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((5, 40, 40)), "or [height, width, 1, 3 or 4], not [5, 40, 40]"),
        (np.zeros((0, 5), "u1"), "not [0, 5]"),
        (np.zeros(9, "u1"), "not [9]"),
        (np.full((28, 28), -0.4), "from 0 to 255 or from 0 to 1, not from -0.4 to -0.4"),
        (np.full((28, 28), np.nan), "not from nan to nan"),
        (np.full((28, 28), 256), "not from 256 to 256"),
        (np.array([["a"]]), "must hold pixels, not <U1"),
    ],
)
def test_an_array_that_is_no_image_is_named(array: NDArray[np.generic], reason: str) -> None:
    assert reason in str(preprocess(array, PreprocessOptions())[0].error)


def test_a_bug_costs_the_prediction_for_one_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Mock(side_effect=IndexError("out of bounds"))
    monkeypatch.setattr("mnist_ce.reader.pool.hypotheses", fail)
    reason = "internal error while preprocessing the image; please report: "
    (result,) = preprocess(np.zeros((9, 9), np.uint8), PreprocessOptions())
    assert result.error == f"{reason}IndexError: out of bounds"


def pages(form: str, *levels: int, sizes: dict[int, int] | None = None, **options: Any) -> bytes:
    """Return a file of pages of these levels of gray, each with a black square."""
    made = []
    for level in levels:
        side = (sizes or {}).get(level, 60)
        made.append(Image.new("L", (side, side), level))
        made[-1].paste(0, (20, 20, 40, 40))
    buffer = io.BytesIO()
    kind = "RGB" if form in ("WEBP", "MPO") else "L"
    first, *others = [page.convert(kind) for page in made]
    first.save(buffer, form, save_all=True, append_images=others, **options)
    return buffer.getvalue()


TWO = pages("MPO", 250, 200)
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "PNG": {"default_image": False}}
PAGES: dict[str, tuple[bytes, list[int | None], list[int]]] = {
    **{
        form: (pages(form, 250, 200, 250, **LOSSLESS.get(form, {})), [1, 2], [250, 200])
        for form in ("GIF", "WEBP", "PNG", "MPO")
    },
    "every page of a TIFF": (pages("TIFF", 250, 250, 200), [1, 2, 3], [250, 250, 200]),
    "one page": (pages("TIFF", 250), [None], [250]),
    "one frame": (pages("GIF", 250), [None], [250]),
    "frames that are equal": (pages("GIF", 250, 250), [None], [250]),
    "a thumbnail": (pages("TIFF", 250, 200, tiffinfo={254: 1}), [None], [250]),
    "a mask": (pages("TIFF", 250, 200, tiffinfo={254: 4}), [None], [250]),
    "a gain map": (pages("MPO", 250, 200, sizes={200: 50}), [None], [250]),
    "a gain map that is lost": (TWO[: TWO.rindex(b"\xff\xd8\xff")], [None], [250]),
}


@pytest.mark.parametrize("case", PAGES)
def test_each_page_and_each_frame_that_differs_is_read(case: str) -> None:
    content, numbers, levels = PAGES[case]
    options = PreprocessOptions(crop=False, keep_image=True)
    results = preprocess(content, options)
    assert [result.page for result in results] == numbers
    found = [int(np.asarray(result.image)[5, 5, 0]) for result in results]
    assert found == pytest.approx(levels, abs=2)


def test_what_a_damaged_page_or_too_many_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pages("TIFF", 250, 200, 150, compression="tiff_adobe_deflate")
    with TiffImageFile(io.BytesIO(content)) as image:
        image.seek(1)
        (start,) = image.tag_v2[273]  # where the pixels are
    damaged = content[:start] + bytes(4) + content[start + 4 :]
    first, other, last = preprocess(damaged, PreprocessOptions())
    assert (first.error, last.error) == (None, None)
    assert "the image, page 2 is damaged" in str(other.error)
    monkeypatch.setattr(image_io, "MAX_PAGES", 2)
    *_, last = preprocess(content, PreprocessOptions())
    assert (last.page, "page 3 and those after it are too many" in str(last.error)) == (3, True)
    monkeypatch.setattr(pool_module, "MAX_SECONDS", 0.0)
    assert [r.page for r in preprocess(content, PreprocessOptions())] == [1, 2]
