"""Open any picture and make of it planes of light: float32 [height, width, 1 or 3] in [0, 1]."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ce.system.errors import ImageError
from mnist_ce.system.files import one_line

__all__ = [
    "Picture",
    "Planes",
    "deep_to_unit",
    "has_transparency",
    "is_deep",
    "open_picture",
    "to_planes",
]

Picture: TypeAlias = Path | str | bytes | Image.Image | NDArray[np.uint8]
Planes: TypeAlias = NDArray[np.float32]

MAX_PIXELS = 120_000_000  # above every phone of 2025 (108 megapixels) and 360 MB decoded
MAX_BYTES = 300_000_000
MAX_SIDE = 1000  # a digit 5 % as high as such a picture still has 50 pixels
MIN_SIDE = 80  # smaller pictures are enlarged, so that every stage has pixels to work with
MAX_ASPECT = 50  # at MAX_SIDE the shorter side still has 20 pixels
FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)


def open_picture(source: Picture) -> Image.Image:
    """Decode a picture, turned upright as its EXIF data say, and no larger than is of use.

    Args:
        source: A path, the bytes of a file, a Pillow image, or uint8 [height, width] or
            [height, width, 3 or 4].

    Returns:
        The decoded image. Pictures larger than `MAX_SIDE` come reduced.

    Raises:
        ImageError: If it is no file, or not a whole picture of a known kind, or far too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the picture", is_ours=False)
    if isinstance(source, bytes):
        return _decode_file(io.BytesIO(source), "the picture")
    path = Path(source)
    return _decode_file(io.BytesIO(_read(path)), str(path))


def _read(path: Path) -> bytes:
    """Return a regular file's content, never waiting for a pipe or reading without end."""
    try:
        # O_NONBLOCK: a named pipe would wait for its writer, before its kind can be seen.
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {one_line(error)}") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder that holds no pictures")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a file")
        if status.st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path} has {status.st_size:,} bytes, more than {MAX_BYTES:,}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {one_line(error)}") from None
    finally:
        os.close(handle)


def _decode_file(file: io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that are checked here
            image = Image.open(file)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has too many pixels (more than {MAX_PIXELS:,})") from None
    except Exception as error:  # decoders raise many kinds for damaged headers
        raise ImageError(f"{name} is damaged: {one_line(error)}") from None
    return _decode(image, name)


def _decode(image: Image.Image, name: str, *, is_ours: bool = True) -> Image.Image:
    """Load an image at a size of use; one that is not ours keeps its own."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width}×{height}, {width * height:,} pixels, more than {MAX_PIXELS:,}"
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name} is {width}×{height}, too narrow to hold a digit")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_ours:  # a JPEG decodes at a half, quarter or eighth
                image.draft(None, (MAX_SIDE, MAX_SIDE))
            image.load()
            if image.mode in ("RGB", "L", "RGBA", "CMYK"):
                factor = max(image.size) // MAX_SIDE
                if factor > 1:
                    image = (
                        image.reduce(factor)
                        if image.mode != "RGBA"
                        else _reduce_alpha(image, factor)
                    )
            return ImageOps.exif_transpose(image)
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError(f"{name} is damaged: {one_line(error)}") from None


def _reduce_alpha(image: Image.Image, factor: int) -> Image.Image:
    """Reduce with colours weighted by opacity, so that hidden ones do not shine through."""
    return image.convert("RGBa").reduce(factor).convert("RGBA")


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(
            f"an array must be uint8 [height, width] or [height, width, 3 or 4], "
            f"not {array.dtype} {list(array.shape)}"
        )
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ImageError(f"an array must have 3 or 4 channels, not {array.shape[2]}")
    return _decode(Image.fromarray(array), "the array")


def to_planes(image: Image.Image) -> Planes:
    """Return the light in a decoded image, with transparency resolved, at a size to work at.

    Args:
        image: Any mode of Pillow's.

    Returns:
        float32 [height, width, 3], or [height, width, 1] where the picture has no colour; 0 is
        black and 1 white. Where a drawing lies on transparency, its ink is dark on light.
    """
    if has_transparency(image):
        rgba = np.asarray(_resize(image.convert("RGBA")), dtype=np.float32)
        return resolve_transparency(rgba / np.float32(255))
    if is_deep(image):
        deep = Image.fromarray(deep_to_unit(image))
        return np.asarray(_resize(deep), dtype=np.float32)[..., None].clip(0, 1)
    if image.mode in ("1", "L"):
        grey = image.convert("L")
        return np.asarray(_resize(grey), dtype=np.float32)[..., None] / np.float32(255)
    planes = np.asarray(_resize(image.convert("RGB")), dtype=np.float32) / np.float32(255)
    if not np.any(np.ptp(planes, axis=2)):
        return planes[..., :1]
    return planes


def _resize(image: Image.Image) -> Image.Image:
    """Bring the longer side into [MIN_SIDE, MAX_SIDE]."""
    longer = max(image.size)
    if MIN_SIDE <= longer <= MAX_SIDE:
        return image
    scale = (MAX_SIDE if longer > MAX_SIDE else MIN_SIDE) / longer
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Reducing covers areas; enlarging is smooth, so that a cut at half height is a smooth outline.
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    if image.mode == "RGBA":
        return image.convert("RGBa").resize(size, method).convert("RGBA")
    return image.resize(size, method)


def has_transparency(image: Image.Image) -> bool:
    """Whether some of a picture may be transparent."""
    return "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa", "RGBA")


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits per pixel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def deep_to_unit(image: Image.Image) -> NDArray[np.float32]:
    """Return 16- and 32-bit values in [0, 1], by the smallest full scale that holds them."""
    values = np.asarray(image, dtype=np.float64)  # float32 would overflow at the ends of its range
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0:
        values = (values - low) / max(high - low, 1e-6)
    else:
        values = values / next((scale for scale in FULL_SCALES if high <= scale), high)
    return values.astype(np.float32)


def resolve_transparency(rgba: Planes) -> Planes:
    """Resolve transparency by asking where the drawing is.

    Where the visible parts are all of one colour, the drawing is the alpha channel itself; else it
    is in the colours, and what is transparent takes the colour that most of the rest has.

    Args:
        rgba: float32 [height, width, 4] in [0, 1].

    Returns:
        float32 [height, width, 1 or 3] in [0, 1]; ink from the alpha channel is dark on light.
    """
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if float(alpha.min()) > 0.98:
        return colours if np.any(np.ptp(colours, axis=2)) else colours[..., :1]
    weight = float(alpha.sum())
    if weight == 0:
        return np.ones((*alpha.shape, 1), dtype=np.float32)
    solid = alpha > 0.5
    if solid.mean() < 0.5 or not solid.any():
        spread = 0.0 if not solid.any() else float(colours[solid].std(axis=0).max())
        if spread < 0.25 or solid.mean() < 0.3:
            return (1 - alpha)[..., None]
    elif float(colours[solid].std(axis=0).max()) < 0.03:
        return (1 - alpha)[..., None]
    fill = np.median(colours[solid], axis=0)
    return colours * alpha[..., None] + fill * (1 - alpha[..., None])
