"""An MNIST image as 14 lines of 28 characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Each character with the intensity of the upper and the lower half of its cell.
BLOCKS = {
    " ": (0.0, 0.0),
    "░": (0.25, 0.25),
    "▒": (0.5, 0.5),
    "▓": (0.75, 0.75),
    "█": (1.0, 1.0),
    "▀": (1.0, 0.0),
    "▄": (0.0, 1.0),
}
ASCII = dict(zip(" .:-=+*#%@", ((level / 9, level / 9) for level in range(10)), strict=True))
DARKEST_GREY = 232  # the first of the 24 greys at the end of xterm's 256 colours


def image_lines(
    pixels: NDArray[np.uint8], *, colour: bool = False, encoding: str = "utf-8"
) -> list[str]:
    """Return an image as text, two rows of pixels to a line.

    Args:
        pixels: uint8 [28, 28], bright strokes on black.
        colour: Use xterm's greys; otherwise characters of different density.
        encoding: The encoding of the terminal; where it has no block characters, ASCII is used.
    """
    pairs = pixels.reshape(14, 2, 28).transpose(0, 2, 1) / 255  # → [14, 28, 2]
    has_blocks = _can_encode("".join(BLOCKS), encoding)
    if colour and has_blocks:
        return ["".join(map(_coloured, line)) + "\x1b[0m" for line in pairs]
    characters = BLOCKS if has_blocks else ASCII
    shades = np.array(list(characters.values()))  # [characters, 2]
    distances = ((pairs[:, :, None, :] - shades) ** 2).sum(axis=-1)  # → [14, 28, characters]
    nearest = distances.argmin(axis=-1)
    drawn = list(characters)
    return ["".join(drawn[index] for index in line) for line in nearest]


def _coloured(pair: NDArray[np.float64]) -> str:
    upper, lower = (DARKEST_GREY + round(23 * float(level)) for level in pair)
    return f"\x1b[38;5;{upper};48;5;{lower}m▀"


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
