"""An MNIST image as 14 lines of 28 characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Each character with the intensity of the upper and the lower half of its cell.
BLOCKS = {character: (level / 4, level / 4) for level, character in enumerate(" ░▒▓█")}
BLOCKS |= {"▀": (1.0, 0.0), "▄": (0.0, 1.0)}
ASCII = {character: (level / 9, level / 9) for level, character in enumerate(" .:-=+*#%@")}
DARKEST_GREY = 232  # the first of the 24 greys at the end of xterm's 256 colours


def image_lines(
    pixels: NDArray[np.uint8], *, colour: bool = False, encoding: str = "utf-8"
) -> list[str]:
    """Return an image as text, two rows of pixels to a line.

    `pixels` are uint8 [28, 28], bright strokes on black. `colour` uses xterm's greys, otherwise
    characters differ in density; where the encoding has no block characters, they are ASCII.
    """
    pairs = pixels.reshape(14, 2, 28).transpose(0, 2, 1) / 255  # → [14, 28, 2]
    try:
        has_blocks = bool("".join(BLOCKS).encode(encoding))
    except (UnicodeEncodeError, LookupError):
        has_blocks = False
    if colour and has_blocks:
        return ["".join(map(_coloured, line)) + "\x1b[0m" for line in pairs]
    characters = BLOCKS if has_blocks else ASCII
    shades = np.array(list(characters.values()))  # [characters, 2]
    distances = ((pairs[:, :, None, :] - shades) ** 2).sum(axis=-1)  # → [14, 28, characters]
    drawn = np.array(list(characters))
    return ["".join(line) for line in drawn[distances.argmin(axis=-1)]]


def _coloured(pair: NDArray[np.float64]) -> str:
    """Return half a block in the grey of the upper pixel, on that of the lower one."""
    upper, lower = (DARKEST_GREY + round(23 * float(level)) for level in pair)
    return f"\x1b[38;5;{upper};48;5;{lower}m▀"
