"""Draw the stages of a picture's way to the network side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["draw_strip"]

TILE = 240
CAPTION = 16


def draw_strip(stages: Mapping[str, NDArray[np.generic]]) -> Image.Image:
    """Return one picture of all stages, each under its name.

    Args:
        stages: By name: uint8 [h, w], or bool or float32 [h, w] in [0, 1].
    """
    strip = Image.new("L", (max(1, len(stages)) * (TILE + 4), TILE + CAPTION), 96)
    draw = ImageDraw.Draw(strip)
    for place, (name, pixels) in enumerate(stages.items()):
        values = (
            pixels if pixels.dtype == np.uint8 else (pixels.astype(np.float32) * 255).clip(0, 255)
        )
        tile = Image.fromarray(values.astype(np.uint8))
        scale = TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        method = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
        strip.paste(tile.resize(size, method), (place * (TILE + 4), CAPTION))
        draw.text((place * (TILE + 4) + 2, 2), name, fill=255)
    return strip
