"""Images that are kept with the label that a user gave them."""  # imported without torch

from __future__ import annotations

import io
import secrets
import time
from pathlib import Path

from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.pixels import has_transparency, to_rgb
from mnist_ce.system.errors import RunError
from mnist_ce.system.files import write_atomically
from mnist_ce.system.text import one_line

MAX_CORRECTIONS = 10_000


def to_png(content: bytes) -> bytes:
    """Return an image encoded anew, upright and without its metadata."""
    image = open_image(content)
    image = image.convert("RGBA") if has_transparency(image) else to_rgb(image)
    image.info.clear()  # the ICC profile, comments, the time and place
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def keep_correction(folder: Path, png: bytes, label: int) -> tuple[Path, int]:
    """Write an image under a new name that begins with its label; return how many there are.

    Raises:
        RunError: If the folder is full or cannot be written.
    """
    name = f"{label}_{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + len(list(folder.glob("*.png")))
        if number > MAX_CORRECTIONS:
            raise RunError(f"{folder} holds {MAX_CORRECTIONS:,} images: name another --corrections")
        write_atomically(folder / name, png)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else one_line(error)
        raise RunError(f"{folder}: {reason}: choose another --corrections") from None
    return folder / name, number
