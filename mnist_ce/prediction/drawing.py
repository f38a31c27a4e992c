"""Drawings that explain a prediction: the stages of preprocessing, and the image annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnist_ce.reader.mnist_format import scale_image

if TYPE_CHECKING:
    from mnist_ce.prediction.predict import Prediction

TILE_PX, CAPTION_PX, GAP_PX = 240, 18, 6  # of the stages
MIN_ANNOTATED_PX = 640  # a smaller image is enlarged, so that the text on it is legible
LABEL_PX = 52  # above the image, for the labels of digits at its upper edge
ACCEPTED, REJECTED, PAPER, INK = (0, 110, 40), (190, 60, 0), (255, 255, 255), (20, 20, 20)


def summary(records: Sequence[Prediction]) -> list[str]:
    """Return the predictions for an image in words: each line of digits, and each rejection."""
    several = len(records) > 1
    lines = dict.fromkeys(f"line {(r.line or 0) + 1}: {r.text}" for r in records if several)
    for r in records:
        place = f"line {(r.line or 0) + 1}, digit {(r.position or 0) + 1}: " if several else ""
        if r.status != "ok":
            guess = f" (the best guess was {r.guess})" if r.guess else ""
            lines[f"{place}{r.status}: {r.reason}{guess}"] = None
        elif not several:
            lines[f"read as {r.class_name} ({r.probability:.1%})"] = None
    return list(lines)


def draw_stages(stages: Mapping[str, NDArray[np.generic]], lines: Sequence[str]) -> Image.Image:
    """Return images [h, w], uint8 or in [0, 1], side by side, numbered and named, above lines."""
    text_height = CAPTION_PX * (1 + len(lines)) + GAP_PX
    width = max(3, len(stages)) * (TILE_PX + GAP_PX) + GAP_PX
    montage = Image.new("RGB", (width, TILE_PX + text_height), PAPER)
    draw, font = ImageDraw.Draw(montage), ImageFont.load_default(13)
    for place, (name, pixels) in enumerate(stages.items()):
        if pixels.dtype != np.uint8:
            pixels = (pixels.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
        left = GAP_PX + place * (TILE_PX + GAP_PX)
        tile = scale_image(
            Image.fromarray(pixels), TILE_PX / max(pixels.shape), Image.Resampling.NEAREST
        )
        draw.text((left, 1), f"{place + 1}. {name}", INK, font)
        draw.rectangle((left - 1, CAPTION_PX - 1, left + tile.width, CAPTION_PX + tile.height), INK)
        montage.paste(tile, (left, CAPTION_PX))
    for number, line in enumerate(lines):
        top = CAPTION_PX * (number + 1) + TILE_PX + GAP_PX // 2
        draw.text((GAP_PX, top), line, INK, font)
    return montage


def annotate(image: Image.Image, records: Sequence[Prediction]) -> Image.Image:
    """Return an image (see `to_rgb`) with the box, digit and probability of each record drawn in.

    The text of each line, and the reason of each rejection, stand below the image.
    """
    enlarged = scale_image(image, max(1.0, MIN_ANNOTATED_PX / max(image.size)))
    scale = enlarged.width / image.info["full_size"][0]
    captions, font = summary(records), ImageFont.load_default(16)
    width = max(enlarged.width, *(round(font.getlength(line)) + 16 for line in captions))
    bottom = LABEL_PX + enlarged.height
    page = Image.new("RGB", (width, bottom + 22 * len(captions) + 8), PAPER)
    page.paste(enlarged, (0, LABEL_PX))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(captions):
        draw.text((8, bottom + 4 + 22 * number), line, INK, font)
    for record in records:
        if record.box is not None:
            _draw_box(draw, record, scale, enlarged.width)
    return page


def _draw_box(draw: ImageDraw.ImageDraw, record: Prediction, scale: float, page_width: int) -> None:
    x, y, width, height = (scale * value for value in record.box or (0, 0, 0, 0))
    y += LABEL_PX
    is_accepted = record.status == "ok"
    colour = ACCEPTED if is_accepted else REJECTED
    frame = (round(x) - 3, round(y) - 3, round(x + width) + 3, round(y + height) + 3)
    draw.rectangle((frame[0] - 2, frame[1] - 2, frame[2] + 2, frame[3] + 2), outline=PAPER, width=2)
    draw.rectangle(frame, outline=colour, width=2)
    text = f"{record.class_name}\n{record.probability:.0%}" if is_accepted else "?"
    font = ImageFont.load_default(min(20, max(10, round(0.2 * max(width, height)))))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font, spacing=1)
    label_left = min(max(0, frame[0]), page_width - (right - left + 4))
    label_top = frame[1] - (bottom - top + 4)
    draw.rectangle((label_left, label_top, label_left + right - left + 4, frame[1]), colour, PAPER)
    draw.multiline_text((label_left + 2 - left, label_top + 2 - top), text, PAPER, font, spacing=1)
