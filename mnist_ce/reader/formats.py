"""Formats that Pillow does not read: HEIC by an extra, base64 text, and the names of the others."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from mnist_ce.system.errors import ImageError, UsageError, require

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
IN_PYTHON = "pass its images to mnist_ce.predict as arrays [28, 28]"
AS_DATASET = "see evaluate --dataset csv:FILE"
# What a file begins with, what it is, and what to do.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"%PDF", "a PDF: export its pages as PNG"),
    (rb"\s*(<\?xml.*?)?(<!DOCTYPE svg.*?|<!--.*?-->\s*)*<svg", "an SVG drawing: export it as PNG"),
    (rb"\s*<(!doctype )?html", "a web page, not the image on it"),
    (rb"version https://git-lfs", "a Git LFS pointer: git lfs pull fetches the image"),
    (
        rb"\0\0[\x08-\x0e][\x01-\x04]",
        f"an IDX file: {IN_PYTHON}, or evaluate --data-dir its folder",
    ),
    (rb"\x93NUMPY", f"a NumPy array: {IN_PYTHON}"),
    (rb"PK\x03\x04", f"an archive (ZIP, NPZ): unpack it, or {IN_PYTHON}"),
    (rb"\x1f\x8b", "compressed by gzip: unpack it"),
    (
        rb"\s*[\w\"' .-]+([,;\t][\w\"' .-]*){3,}\s*(\n|\Z)",
        f"a table (CSV): {IN_PYTHON}, or {AS_DATASET}",
    ),
)


def open_foreign(content: bytes, name: str) -> Image.Image:
    """Return the image in HEIC content or in base64 text (a data URL too).

    Raises:
        ImageError: If it is neither; the message says what it is, where that is known.
    """
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
        return _open_heic(content, name)
    for signature, description in SIGNATURES:
        if re.match(signature, content[:2000], re.DOTALL | re.IGNORECASE):
            raise ImageError(f"{name} is {description}")
    text = content.rpartition(b",")[2] if content.startswith(b"data:") else content
    try:
        decoded = base64.b64decode(b"".join(text.split()), validate=True)
        return Image.open(io.BytesIO(decoded))
    except (binascii.Error, OSError):
        raise ImageError(f"{name} is not an image that Pillow can read") from None


def _open_heic(content: bytes, name: str) -> Image.Image:
    try:
        require("pillow_heif", extra="heic")
    except UsageError as error:
        raise ImageError(f"{name} is a HEIC image, but {error}, or save it as JPEG") from None
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return image
