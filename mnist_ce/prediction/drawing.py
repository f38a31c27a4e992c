"""Drawings that explain a prediction: the stages of preprocessing, and the image annotated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_ce.prediction.predict import Prediction
from mnist_ce.reader.mnist_format import scale_image
from mnist_ce.system.text import certainty

TILE_PX, CAPTION_PX, GAP_PX, FONT_PX = 240, 20, 6, 14
MIN_SHOWN_PROBABILITY = 0.001
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
            text = first.reading
            details = [f"{(r.position or 0) + 1}: {r.reason}" for r in digits if r.reason]
        elif first.status == "ok":
            likely = [k for k in first.top_k[1:] if k.probability >= MIN_SHOWN_PROBABILITY]
            details = [", ".join(f"{k.class_name} {certainty(k.probability)}" for k in likely)]
        elif first.status == "error":
            text, details = "error", []
        else:
            text = f"({text}?)" if text and not first.has_several else "-"
        lowest = certainty(min(accepted)) if accepted else ""
        descriptions.append((text, lowest, [detail for detail in details if detail]))
    return descriptions


def draw_stages(records: Sequence[Prediction]) -> Image.Image:
    """Return an image's stages side by side, numbered and named, above its records in words."""
    stages = records[0].stages
    width = max(3, len(stages)) * (TILE_PX + GAP_PX) + GAP_PX
    montage = Image.new("RGB", (width, CAPTION_PX + TILE_PX + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(montage), ImageFont.load_default(FONT_PX)
    for place, (name, pixels) in enumerate(stages.items()):
        if pixels.dtype != np.uint8:
            pixels = (pixels.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
        left = GAP_PX + place * (TILE_PX + GAP_PX)
        image, scale = Image.fromarray(pixels), TILE_PX / max(pixels.shape)
        tile = scale_image(image, scale, Image.Resampling.NEAREST)
        draw.text((left, 1), f"{place + 1}. {name}", INK, font)
        draw.rectangle((left - 1, CAPTION_PX - 1, left + tile.width, CAPTION_PX + tile.height), INK)
        montage.paste(tile, (left, CAPTION_PX))
    return _with_captions(montage, records)


def annotate(image: Image.Image, records: Sequence[Prediction]) -> Image.Image:
    """Return an image (see `to_rgb`) with the boxes of its records, above the records in words."""
    enlarged = scale_image(image, max(1.0, MIN_ANNOTATED_PX / max(image.size)))
    scale = enlarged.width / image.info["full_size"][0]
    page = Image.new("RGB", (enlarged.width, LABEL_PX + enlarged.height + 4), PAPER)
    page.paste(enlarged, (0, LABEL_PX))
    for record in records:
        if record.box is not None:
            _draw_box(ImageDraw.Draw(page), record, scale, enlarged.width)
    return _with_captions(page, records)


def _with_captions(image: Image.Image, records: Sequence[Prediction]) -> Image.Image:
    captions, descriptions = [], describe_lines(records)
    for number, (text, probability, details) in enumerate(descriptions, 1):
        place = f"line {number}: " if len(descriptions) > 1 else ""
        captions += [f"{place}{text}  {probability}", *details]
    font = ImageFont.load_default(FONT_PX)
    width = max(image.width, *(round(font.getlength(line)) + 2 * GAP_PX for line in captions))
    page = Image.new("RGB", (width, image.height + CAPTION_PX * len(captions) + GAP_PX), PAPER)
    page.paste(image)
    for number, line in enumerate(captions):
        ImageDraw.Draw(page).text((GAP_PX, image.height + CAPTION_PX * number), line, INK, font)
    return page


def _draw_box(draw: ImageDraw.ImageDraw, record: Prediction, scale: float, page_width: int) -> None:
    x, y, width, height = (scale * value for value in record.box or (0, 0, 0, 0))
    y += LABEL_PX
    is_accepted = record.status == "ok"
    colour = ACCEPTED if is_accepted else REJECTED
    frame = (round(x) - 3, round(y) - 3, round(x + width) + 3, round(y + height) + 3)
    draw.rectangle((frame[0] - 2, frame[1] - 2, frame[2] + 2, frame[3] + 2), outline=PAPER, width=2)
    draw.rectangle(frame, outline=colour, width=2)
    text = f"{record.class_name}\n{certainty(record.probability or 0.0)}" if is_accepted else "?"
    font = ImageFont.load_default(min(20, max(10, round(0.2 * max(width, height)))))
    text_width = round(max(font.getlength(line) for line in text.split("\n")))
    corner = min(max(0, frame[0]), page_width - text_width - 4) + 2, frame[1] - 2
    left, top, right, _ = draw.multiline_textbbox(corner, text, font, spacing=1, anchor="ld")
    draw.rectangle((left - 2, top - 2, right + 2, frame[1]), colour, PAPER)
    draw.multiline_text(corner, text, PAPER, font, spacing=1, anchor="ld")
