"""Drawings that explain a prediction: the stages of preprocessing, and the image annotated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_ce.reader.mnist_format import scale_image

if TYPE_CHECKING:
    from mnist_ce.prediction.predict import Prediction

TILE_PX, CAPTION_PX, GAP_PX = 240, 18, 6  # of the stages
MIN_ANNOTATED_PX = 640  # a smaller image is enlarged, so that the text on it is legible
LABEL_PX = 52  # above the image, for the labels of digits at its upper edge
ACCEPTED, REJECTED, PAPER, INK = (0, 110, 40), (190, 60, 0), (255, 255, 255), (20, 20, 20)


def describe_lines(records: Sequence[Prediction]) -> list[tuple[str, str, list[str]]]:
    """Return each text line of an image in words: the digits, the lowest probability, details.

    A rejected guess is in parentheses and has no probability; an error's reason is no detail.
    """
    descriptions = []
    for _, line in groupby(records, key=lambda record: record.line):
        first, *others = digits = list(line)
        accepted = [r.probability or 0.0 for r in digits if r.status == "ok"]
        text, details = first.class_name or "", [first.reason or ""]
        if others:
            text = first.text or ""
            details = [f"{(r.position or 0) + 1}: {r.reason}" for r in digits if r.reason]
        elif first.status == "ok":
            details = [", ".join(f"{k.class_name} {k.probability:.1%}" for k in first.top_k[1:])]
        elif first.status == "error":
            text, details = "error", []
        else:
            text = f"({text}?)" if text and not first.has_several else "-"
        lowest = f"{min(accepted):.1%}" if accepted else ""
        descriptions.append((text, lowest, [detail for detail in details if detail]))
    return descriptions


def _captions(records: Sequence[Prediction]) -> list[str]:
    captions, descriptions = [], describe_lines(records)
    for number, (text, probability, details) in enumerate(descriptions, 1):
        place = f"line {number}: " if len(descriptions) > 1 else ""
        captions += [f"{place}{text}  {probability}", *details]
    return captions


def draw_stages(records: Sequence[Prediction]) -> Image.Image:
    """Return an image's stages side by side, numbered and named, above its records in words."""
    stages, lines = records[0].stages, _captions(records)
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
    """Return an image (see `to_rgb`) with the boxes of its records, above the records in words."""
    enlarged = scale_image(image, max(1.0, MIN_ANNOTATED_PX / max(image.size)))
    scale = enlarged.width / image.info["full_size"][0]
    captions, font = _captions(records), ImageFont.load_default(16)
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
