"""Image input: finding files, decoding untrusted ones, and float arrays of them."""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnist_ce.reader.formats import open_foreign
from mnist_ce.reader.mnist_format import FloatImage, scale_image
from mnist_ce.system.errors import ImageError, ImageTooLargeError
from mnist_ce.system.text import one_line

ImageSource: TypeAlias = Path | str | bytes | Image.Image | NDArray[np.generic]

MAX_PIXELS = 120_000_000  # above every phone of 2025 (108 megapixels) and 360 MB decoded
MAX_BYTES = 300_000_000
MAX_SIDE_PX = 1000  # a digit 5 % as high as such an image still has 50 pixels
MIN_SIDE_PX = 80  # smaller images are enlarged, so that every stage has pixels to work with
MAX_ASPECT = 50  # at MAX_SIDE_PX the shorter side still has 20 pixels
FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)

logger = logging.getLogger(__name__)

STDIN = "-"
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".ico"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".jfif", ".jpe", ".j2k", ".dib", ".apng"),
    *(".heic", ".heif"),
}


def find_images(patterns: Sequence[str], *, recursive: bool = False) -> Iterator[Path | None]:
    """Yield the files that paths, folders (their images, sorted) and glob patterns stand for.

    `-` yields None, for stdin. What does not exist is yielded too, to be reported as an error.
    Hidden files in a folder, and those that are no images by name, are skipped and logged.
    """
    for pattern in patterns:
        if pattern == STDIN:
            yield None
            continue
        path, found = Path(pattern), list[Path]()
        with contextlib.suppress(OSError, ValueError):  # a name too long, an unreadable folder
            if path.is_dir():
                found = _images_below(path, recursive)
            elif glob.has_magic(pattern) and not path.exists():
                found = [match for match in _glob(path) if not match.is_dir()]
        yield from found or [path]


def each_image(images: object) -> Iterator[ImageSource]:
    """Yield one image, or each of an array [n, 28, 28] or [n, …, …, …] or of any iterable.

    Raises:
        TypeError: If it is none of the types that `predict` names.
    """
    shape = tuple(getattr(images, "shape", ()))  # of an array or tensor
    is_batch = len(shape) == 4 or (len(shape) == 3 and shape[1:] == (28, 28))
    one = (str, bytes, bytearray, memoryview, Mapping, Image.Image)
    is_one = isinstance(images, one) or hasattr(images, "read") or hasattr(images, "shape")
    if is_batch or (isinstance(images, Iterable) and not is_one):
        yield from map(_as_source, images)  # type: ignore[call-overload]
    else:
        yield _as_source(images)


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
    hidden = [p for p in files if any(n.startswith(".") for n in p.relative_to(folder).parts)]
    found = sorted(p for p in {*files} - {*hidden} if p.suffix.lower() in SUFFIXES)
    if num_skipped := len(files) - len(found):
        logger.info(
            "%s: %d of %d files skipped (%d hidden, %d no images by name)",
            *(folder, num_skipped, len(files), len(hidden), num_skipped - len(hidden)),
        )
    return found


def _glob(pattern: Path) -> list[Path]:
    # Folders that exist by their literal name, brackets and all, are no patterns.
    literal = next(parent for parent in (*pattern.parents, Path()) if parent.exists())
    rest = pattern.relative_to(literal)
    matches = glob.glob(str(Path(glob.escape(str(literal))) / rest), recursive=True)  # noqa: PTH207
    return sorted(map(Path, matches))


def open_image(source: ImageSource) -> Image.Image:
    """Decode an image and turn it upright by its EXIF data.

    The source is a path, the bytes of a file, a Pillow image, or pixels [height, width] or
    [height, width, 1, 3 or 4]: 0 to 255, or bool or floats in [0, 1]. Larger images than
    `MAX_SIDE_PX` are reduced by a whole factor.

    Raises:
        ImageError: If it is no file, damaged, of an unknown format, or far too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the image", can_draft=False)
    if isinstance(source, bytes):
        return _decode_file(source, "the image")
    return _decode_file(_read(Path(source)), str(Path(source)))


def _read(path: Path) -> bytes:
    # O_NONBLOCK: opening a named pipe would block until it has a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {one_line(error)}") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder that holds no images")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path} has {status.st_size:,} bytes, more than {MAX_BYTES:,}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {one_line(error)}") from None
    finally:
        os.close(handle)


def _decode_file(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that are checked here
            image: Image.Image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        image = open_foreign(content, name)
    except Image.DecompressionBombError:
        reason = f"{name} has too many pixels (more than {MAX_PIXELS:,})"
        raise ImageTooLargeError(reason) from None
    except Exception as error:  # decoders raise many kinds for damaged headers
        raise ImageError(f"{name} is damaged: {one_line(error)}") from None
    return _decode(image, name)


def _decode(image: Image.Image, name: str, *, can_draft: bool = True) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageTooLargeError(
            f"{name} is {width}×{height}, {width * height:,} pixels, more than {MAX_PIXELS:,}"
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name} is {width}×{height}, too narrow to hold a digit")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if can_draft:  # a JPEG decodes at 1/2, 1/4 or 1/8; this changes `image` itself
                image.draft(None, (MAX_SIDE_PX, MAX_SIDE_PX))
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            factor = max(image.size) // MAX_SIDE_PX
            if factor > 1 and image.mode == "RGBA":
                # Weighted by opacity, so that hidden colours do not shine through.
                image = image.convert("RGBa").reduce(factor).convert("RGBA")
            elif factor > 1 and image.mode in ("RGB", "L", "CMYK"):
                image = image.reduce(factor)
            upright = ImageOps.exif_transpose(image)
            upright.info["full_size"] = (height, width) if turned else (width, height)
            return upright
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError(f"{name} is damaged: {one_line(error)}") from None


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
    return _decode(Image.fromarray(array), "the array")


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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in RGB, as a person sees it: on white where it is transparent."""
    shown = image
    if is_deep(image):
        shown = Image.fromarray((255 * deep_to_unit(image)).round().astype(np.uint8))
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(shown.convert("RGBA"))
    rgb = page.convert("RGB")
    rgb.info["full_size"] = image.info["full_size"]
    return rgb


def to_float_image(image: Image.Image) -> FloatImage:
    """Return a decoded image of any mode at working size, with transparency resolved.

    float32 [height, width, 3], or [height, width, 1] if it has no colour; 0 is black, 1 white.
    """
    if has_transparency(image):
        return resolve_transparency(_resized_pixels(image.convert("RGBA")))
    if is_deep(image):
        deep = Image.fromarray(deep_to_unit(image))
        return np.asarray(_resize(deep), dtype=np.float32)[..., None].clip(0, 1)
    if image.mode in ("1", "L"):
        return _resized_pixels(image.convert("L"))[..., None]
    return _without_equal_channels(_resized_pixels(image.convert("RGB")))


def _resized_pixels(image: Image.Image) -> FloatImage:
    return np.asarray(_resize(image), dtype=np.float32) / np.float32(255)


def _without_equal_channels(pixels: FloatImage) -> FloatImage:
    return pixels if np.any(np.ptp(pixels, axis=2)) else pixels[..., :1]


def _resize(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if MIN_SIDE_PX <= longer <= MAX_SIDE_PX:
        return image
    scale = (MAX_SIDE_PX if longer > MAX_SIDE_PX else MIN_SIDE_PX) / longer
    if image.mode == "RGBA":
        return scale_image(image.convert("RGBa"), scale).convert("RGBA")
    return scale_image(image, scale)


def has_transparency(image: Image.Image) -> bool:
    """Return whether a part of an image may be transparent."""
    return "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa", "RGBA")


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits per channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def deep_to_unit(image: Image.Image) -> NDArray[np.float32]:
    """Return 16- or 32-bit values in [0, 1], float32, by the smallest full scale above them."""
    values = np.asarray(image, dtype=np.float64)  # float32 would overflow at the ends of its range
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0:
        values = (values - low) / max(high - low, 1e-6)
    else:
        values = values / next((scale for scale in FULL_SCALES if high <= scale), high)
    return values.astype(np.float32)


def resolve_transparency(rgba: FloatImage) -> FloatImage:
    """Resolve transparency: [height, width, 4] → [height, width, 1 or 3], in [0, 1].

    Where the visible parts have one colour, the drawing is the alpha channel itself and becomes
    dark on light; else it is in the colours, and transparent parts take their median.
    """
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if float(alpha.min()) > 0.98:
        return _without_equal_channels(colours)
    if float(alpha.sum()) == 0:
        return np.ones((*alpha.shape, 1), dtype=np.float32)
    solid, covered = alpha > 0.5, (alpha > 0.5).mean()
    spread = float(colours[solid].std(axis=0).max()) if solid.any() else 0.0
    # Strokes cover less than half of an image, often less than 30 %, and may vary in colour; where
    # more is covered, only a flat colour leaves the drawing to the alpha channel.
    if (covered < 0.3 or spread < 0.25) if covered < 0.5 else spread < 0.03:
        return (1 - alpha)[..., None]
    fill = np.median(colours[solid], axis=0)
    return colours * alpha[..., None] + fill * (1 - alpha[..., None])
