"""Image input: finding files and decoding untrusted ones."""

from __future__ import annotations

import base64
import binascii
import contextlib
import glob
import hashlib
import io
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PREFIXES as TIFF_PREFIXES
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mnist_ce.reader.pixels import MAX_SIDE_PX, has_transparency, is_deep
from mnist_ce.system.errors import ImageError, ImageTooLargeError, UsageError, require
from mnist_ce.system.files import as_path, find_example, read_regular
from mnist_ce.system.text import one_line

ImageSource: TypeAlias = Path | str | bytes | Image.Image | NDArray[np.generic]

# Of the image as decoded: 480 MB in RGB, as Pillow keeps it. The libraries of WebP and HEIC, and
# reducing what has transparency or more than 8 bits, take two or three copies more: a phone's 48
# megapixels are their limit.
MAX_PIXELS, MAX_COPIED_PIXELS = 120_000_000, 50_000_000
# In the file of a baseline JPEG, which decodes at 1/2, 1/4 or 1/8: a phone of 200 megapixels, since
# 2022 on the market, gives 16,320×12,240. A progressive one keeps all coefficients in memory.
MAX_JPEG_PIXELS = 250_000_000
MAX_BYTES = 300_000_000
MAX_PAGES = 200
MAX_ASPECT = 50  # at MAX_SIDE_PX the shorter side still has 20 pixels

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What a file begins with, and what reads it: the formats that people send. Pillow knows some forty
# more, each of which a stranger's file could put to the test.
READERS: dict[tuple[bytes, ...], Callable[[io.BytesIO], Image.Image]] = {
    (b"\x89PNG\r\n",): PngImageFile,
    (b"\xff\xd8\xff",): jpeg_factory,
    (b"GIF8",): GifImageFile,
    (b"BM",): BmpImageFile,
    (b"RIFF",): WebPImageFile,
    tuple(TIFF_PREFIXES): TiffImageFile,
}
NEW_SUBFILE_TYPE, THUMBNAIL_OR_MASK = 254, 1 | 4  # a tag of TIFF, and two of its bits
NOT_AN_IMAGE = "is not an image that can be read: PNG, JPEG, WebP, GIF, BMP, TIFF or HEIC"
IN_PYTHON = "pass its images to mnist_ce.predict as arrays [28, 28]"
# What other files begin with, what they are, and what to do.
SIGNATURES: dict[tuple[bytes, ...], str] = {
    (b"%pdf",): "a PDF: export its pages as PNG",
    (b"<!doctype html", b"<html"): "a web page, not the image on it",
    (b"<",): "an SVG drawing or another text: export it as PNG",
    (b"version https://git-lfs",): "a Git LFS pointer: git lfs pull fetches the image",
    tuple(bytes((0, 0, kind)) for kind in range(8, 15)): (
        f"an IDX file: {IN_PYTHON}, or see evaluate --dataset idx:DIR"
    ),
    (b"\x93numpy",): f"a NumPy array: {IN_PYTHON}",
    (b"pk\3\4",): f"an archive (ZIP, NPZ): unpack it, or {IN_PYTHON}",
    (b"\x1f\x8b",): "compressed by gzip: unpack it",
}
TABLE = f"a table (CSV): {IN_PYTHON}, or see evaluate --dataset csv:FILE"

logger = logging.getLogger(__name__)

STDIN = "-"
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".webp", ".heic", ".heif"),
}


def find_images(patterns: Sequence[str], *, recursive: bool = False) -> Iterator[Path | str | None]:
    """Yield the files that paths, folders (their images, sorted) and glob patterns stand for.

    `-` yields None, for stdin. What does not exist and addresses are yielded too, to be reported.
    Hidden files in a folder, and those that are no images by name, are skipped and logged.
    """
    for pattern in patterns:
        if pattern == STDIN:
            yield None
            continue
        path, files = Path(pattern), list[Path]()
        with contextlib.suppress(OSError, ValueError):  # a name too long, an unreadable folder
            if (folder := find_example(path)).is_dir():
                files = [path / p.relative_to(folder) for p in _images_below(folder, recursive)]
            elif glob.has_magic(pattern) and not path.exists():
                matches = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
                files = [match for match in matches if not match.is_dir()]
        yield from files or (pattern if "://" in pattern else path,)


def holds_images(images: object) -> bool:
    """Whether this is an array [n, 28, 28], [n, 784] or [n, …, …, …], or another iterable."""
    shape = tuple(getattr(images, "shape", ()))  # of an array or tensor
    is_batch = len(shape) == 4 or shape[1:] in ((28, 28), (784,))
    one = (str, bytes, bytearray, memoryview, Mapping, Image.Image)
    is_one = isinstance(images, one) or hasattr(images, "read") or hasattr(images, "shape")
    return is_batch or (isinstance(images, Iterable) and not is_one)


def each_image(images: Any) -> Iterator[ImageSource]:  # noqa: ANN401
    """Yield one image, or each of several.

    Raises:
        TypeError: If it is none of the types that `predict` names.
    """
    if hasattr(images, "to_numpy"):  # a table of pandas
        images = images.to_numpy()
    if getattr(images, "shape", ())[1:] == (784,):
        images = images.reshape(-1, 28, 28)
    yield from map(_as_source, images if holds_images(images) else [images])


def _as_source(image: Any) -> ImageSource:  # noqa: ANN401
    if isinstance(image, (str, Path, bytes, Image.Image)):
        return image
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        content = image.read()
        if isinstance(content, bytes):
            return content
        raise TypeError(f"a file must be open in binary mode: {type(image).__name__} reads text")
    if hasattr(image, "detach"):  # a tensor; the processes of a pool do not import torch
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "an image must be a path, bytes, a binary file, a Pillow image, an array or a tensor, "
            f"not {type(image).__name__}"
        )
    is_planar = image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4)
    return np.moveaxis(image, 0, 2) if is_planar else image


def _images_below(folder: Path, recursive: bool) -> list[Path]:
    files = [p for p in folder.glob("**/*" if recursive else "*") if not p.is_dir()]
    images = [
        path
        for path in sorted(files)
        if path.suffix.lower() in SUFFIXES
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    if num_skipped := len(files) - len(images):
        text = "%s: %d of %d files skipped, hidden or no images by name"
        logger.info(text, folder, num_skipped, len(files))
    return images


def open_image(source: ImageSource, name: str = "the image") -> Image.Image:
    """Decode an image, of several pages the first, and turn it upright by its EXIF data.

    The source is a path, the bytes of a file, a Pillow image, or pixels [height, width] or
    [height, width, 1, 3 or 4]: 0 to 255, or bool or floats in [0, 1]. Larger images than
    `MAX_SIDE_PX` are reduced by a whole factor.

    Raises:
        ImageError: If it is no file, damaged, of an unknown format, or far too large.
    """
    _, page = next(open_pages(source, name))
    if isinstance(page, ImageError):
        raise page
    return page


def open_pages(
    source: ImageSource, name: str = "the image", max_seconds: float = math.inf
) -> Iterator[tuple[int, Image.Image | ImageError]]:
    """Yield the number of each page, from 1, and the page as `open_image` decodes it, or its error.

    Thumbnails, masks and a frame that repeats an earlier one are left out. Pages that this process
    would not end within `max_seconds` of CPU time, with those before, are refused.
    """
    if isinstance(source, (str, Path)):
        name, source = str(source), read_file(source)
    name = "the array" if isinstance(source, np.ndarray) else name
    started_at, frames = time.process_time(), set[bytes]()
    with _image_errors(name):
        image = _from_array(source) if isinstance(source, np.ndarray) else source
        image = _open_file(image, name) if isinstance(image, bytes) else image
        size, is_file = image.size, image is not source
        has_frames = getattr(image, "is_animated", False) and not isinstance(image, TiffImageFile)
    for number in itertools.count(1):
        place = name if number == 1 else f"{name}, page {number}"
        page: Image.Image | ImageError | None = None
        has_more = False
        try:
            with _image_errors(place):
                if number > 1:
                    if not _seek(image, number):
                        return
                    expected_seconds = (time.process_time() - started_at) * number / (number - 1)
                    if number > MAX_PAGES or expected_seconds > max_seconds:
                        rest = "and those after it are too many to read at once: split the file"
                        raise ImageError(f"{place} {rest}")
                has_more = is_file
                if number == 1 or _is_page(image, size):
                    page = _decode(image, place, can_draft=is_file)
        except ImageError as error:
            page = error
        if has_frames and isinstance(page, Image.Image):
            frame = hashlib.sha256(page.convert("RGBA").tobytes()).digest()
            page = None if frame in frames else page
            frames.add(frame)
        if page is not None:
            yield number, page
        if not has_more:
            return


def _seek(image: Image.Image, number: int) -> bool:
    """Go to a page, if there is one; of a HEIC only the first is the photograph."""
    # What a camera appends to a JPEG is lost where a service copied the photograph alone.
    lost = (EOFError, ValueError, SyntaxError) if image.format == "MPO" else (EOFError,)
    with contextlib.suppress(*lost):
        image.seek(number - 1)
        return image.format != "HEIF"
    return False


def _is_page(image: Image.Image, first_size: tuple[int, int]) -> bool:
    """Whether it is no thumbnail or mask of a TIFF, and no gain map beside a camera's JPEG."""
    if isinstance(image, TiffImageFile):
        return not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & THUMBNAIL_OR_MASK
    return image.size == first_size


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name} has more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError(f"{name} is damaged: {one_line(error)}") from None


def read_file(path: Path | str) -> bytes:
    try:
        if (file := as_path(path)).is_dir():
            raise ImageError(f"{path} is a folder that holds no images")
        return read_regular(find_example(file), MAX_BYTES)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except UsageError as error:  # an address
        raise ImageError(str(error)) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {one_line(error)}") from None


def _open_file(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name} is empty (0 bytes)")
    image = _open(content, name) or _open(_decode_base64(content), name)
    if image is None:
        raise ImageError(f"{name} {_describe(content)}")
    return image


def _open(content: bytes, name: str) -> Image.Image | None:
    """Read the header of an image, or return None where it is in no known format."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
        try:
            require("pillow_heif", extra="heic")
        except UsageError as error:
            raise ImageError(f"{name} is a HEIC image, but {error}, or save it as JPEG") from None
        from pillow_heif import HeifImageFile

        heic: Image.Image = HeifImageFile(io.BytesIO(content))  # type: ignore[no-untyped-call]
        return heic
    readers = (reader for prefixes, reader in READERS.items() if content.startswith(prefixes))
    reader = next(readers, None)
    return None if reader is None else reader(io.BytesIO(content))


def _decode_base64(content: bytes) -> bytes:
    """Return the bytes of base64 text or a data URL; no bytes where it is neither."""
    text = content.rpartition(b",")[2] if content.startswith(b"data:") else content
    with contextlib.suppress(binascii.Error):
        return base64.b64decode(b"".join(text.split()), validate=True)
    return b""


def _describe(content: bytes) -> str:
    start = content[:2000].lstrip().lower()
    row = start.partition(b"\n")[0]
    if row.isascii() and max(row.count(separator) for separator in (b",", b";", b"\t")) >= 3:
        return f"is {TABLE}"
    found = (f"is {what}" for prefixes, what in SIGNATURES.items() if start.startswith(prefixes))
    return next(found, NOT_AN_IMAGE)


def _decode(image: Image.Image, name: str, *, can_draft: bool = True) -> Image.Image:
    width, height = image.size
    is_copied = image.format in ("WEBP", "HEIF") or is_deep(image) or has_transparency(image)
    max_pixels = MAX_COPIED_PIXELS if is_copied else MAX_PIXELS
    if can_draft:  # a JPEG decodes at 1/2, 1/4 or 1/8, HEIC a thumbnail; this changes `image`
        image.draft(None, (MAX_SIDE_PX, MAX_SIDE_PX))
        if image.size != (width, height) and "progressive" not in image.info:
            max_pixels = MAX_JPEG_PIXELS
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width}×{height}, {width * height:,} pixels, more than {max_pixels:,}"
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name} is {width}×{height}, too narrow to hold a digit")
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    factor = max(image.size) // MAX_SIDE_PX
    reduced = _reduce(image, factor) if factor > 1 else image.copy()
    reduced.getexif()[ExifTags.Base.Orientation] = orientation
    upright = ImageOps.exif_transpose(reduced)
    # Metadata ends here, but for what transparency means.
    upright.info = {key: upright.info[key] for key in ("transparency",) if key in upright.info}
    upright.info["full_size"] = (height, width) if orientation >= 5 else (width, height)
    return upright


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    """Return an image reduced by a whole factor, as F or RGBA where there is no simpler way."""
    if is_deep(image):
        return Image.fromarray(np.asarray(image, dtype=np.float32)).reduce(factor)
    if has_transparency(image):  # weighted by opacity, so that hidden colours do not shine through
        return image.convert("RGBA").convert("RGBa").reduce(factor).convert("RGBA")
    # Bilevel or a palette, in a byte per pixel, is reduced later.
    return image.reduce(factor) if image.mode in ("RGB", "L", "CMYK") else image


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            "an array must be [height, width] or [height, width, 1, 3 or 4], "
            f"not {list(array.shape)}"
        )
    if array.dtype != np.uint8:
        array = _to_uint8(array)
    return Image.fromarray(array)


def _to_uint8(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype.kind not in "buif":
        raise ImageError(f"an array must hold pixels, not {array.dtype}")
    pixels = array.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= 255:  # NaN too
        raise ImageError(
            f"an array must hold pixels from 0 to 255 or from 0 to 1, not from {low:g} to {high:g}"
        )
    is_fraction = array.dtype.kind == "b" or (array.dtype.kind == "f" and high <= 1)
    return (pixels * (255 if is_fraction else 1)).round().astype(np.uint8)
