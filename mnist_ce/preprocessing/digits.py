"""From a picture to the glyphs in it: the stages in their order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_ce.glyph import FIELD_SIZE, fit_glyph
from mnist_ce.preprocessing.ink import Ink, Plane, find_ink, merge_colours
from mnist_ce.preprocessing.parts import Group, find_parts, group_parts
from mnist_ce.preprocessing.reading import to_planes
from mnist_ce.preprocessing.stroke import normalise_weight

__all__ = ["Digit", "Finding", "find_digits", "whole_picture"]


@dataclass(frozen=True)
class Digit:
    """One digit of a picture.

    Args:
        glyph: uint8 [28, 28], ink bright on black.
        box: (top, left, bottom, right) at the working size of the picture.
        fullness: How well the cut-out looks like ink.
    """

    glyph: NDArray[np.uint8]
    box: tuple[int, int, int, int] | None = None


@dataclass
class Finding:
    """What was found in a picture.

    Args:
        digits: From left to right; one of them where a single digit was asked for.
        num_found: How many digits there seem to be.
        stages: The picture after each stage, by name; float32 or uint8 [h, w].
    """

    digits: list[Digit]
    num_found: int
    stages: dict[str, NDArray[np.generic]] = field(default_factory=dict)


def as_it_is(image: Image.Image) -> NDArray[np.uint8] | None:
    """The glyph of a picture that is one already: 28×28, light on dark or the inverse.

    It must lie as MNIST's lie: no longer than 20 pixels and centred by mass. All of MNIST's
    training images do, with room to spare; a drawing on a grid of 28×28 need not.
    """
    if image.size != (FIELD_SIZE, FIELD_SIZE) or image.mode not in ("L", "RGB", "1", "P"):
        return None
    if image.mode != "L":
        colours = np.asarray(image.convert("RGB"))
        if np.any(np.ptp(colours.astype(np.int16), axis=2)):
            return None
    pixels = np.asarray(image.convert("L"))
    for glyph in (pixels, 255 - pixels):
        rim = np.concatenate(
            [glyph[:2].ravel(), glyph[-2:].ravel(), glyph[:, :2].ravel(), glyph[:, -2:].ravel()]
        )
        if rim.max() > 40:
            continue
        ink = np.where(glyph > 40, glyph, 0)
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        if rows.size == 0:
            continue
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        y, x = ndimage.center_of_mass(ink)
        if 15 <= longer <= 22 and abs(y - 14) < 2 and abs(x - 14) < 2:
            return np.ascontiguousarray(glyph)
    return None


def find_digits(image: Image.Image, *, multi: bool = False, keep_stages: bool = False) -> Finding:
    """Find the digit, or the digits, in a picture.

    Args:
        image: As `open_picture` gives it.
        multi: Look for a row of digits.
        keep_stages: Keep the picture after each stage.
    """
    ready = as_it_is(image)
    if ready is not None:
        return Finding([Digit(ready)], 1, {"glyph": ready} if keep_stages else {})
    light = merge_colours(to_planes(image))
    inks = [ink for dark in (True, False) if (ink := find_ink(light, dark)) is not None]
    best: tuple[float, Ink, list[Group], NDArray[np.int32]] | None = None
    for ink in inks:
        labels, parts = find_parts(ink)
        groups = group_parts(parts, light.shape)
        if not groups:
            continue
        score = groups[0].score * (1.0 if ink.is_dark else 0.8)
        if best is None or score > best[0]:
            best = (score, ink, groups, labels)
    stages: dict[str, NDArray[np.generic]] = {"light": light} if keep_stages else {}
    if best is None:
        return Finding([], 0, stages)
    _, ink, groups, labels = best
    digit, levels = cut_out(ink, groups[0], labels)
    if keep_stages:
        stages |= {
            "ink": ink.levels.clip(0, 1),
            "mask": ink.mask,
            "digit": levels,
            "glyph": digit.glyph,
        }
    others = [
        g for g in groups[1:] if g.size > 0.5 * groups[0].size and g.score > 0.4 * groups[0].score
    ]
    return Finding([digit], 1 + len(others), stages)


def cut_out(ink: Ink, group: Group, labels: NDArray[np.int32]) -> tuple[Digit, Plane]:
    """Cut a digit out of its picture and make it a glyph."""
    top, left, bottom, right = group.box
    margin = 2
    rows = slice(max(0, top - margin), bottom + margin)
    columns = slice(max(0, left - margin), right + margin)
    inside = np.isin(labels[rows, columns], [p.label for p in group.parts])
    near = ndimage.binary_dilation(inside, np.ones((3, 3)))
    levels = np.where(near, ink.levels[rows, columns], 0).clip(0, 1.2).astype(np.float32)
    drawn = normalise_weight(levels)
    return Digit(fit_glyph(drawn), group.box), drawn


def whole_picture(image: Image.Image) -> Digit:
    """The whole picture as a glyph, for networks that look at other things than digits.

    28×28 is taken as it is; anything else is made grey, fitted into the square, and inverted where
    its border is bright, as these data sets are bright on black.
    """
    grey = image.convert("L") if image.mode != "RGBA" else _on_white(image).convert("L")
    pixels = np.asarray(grey)
    if pixels.shape == (FIELD_SIZE, FIELD_SIZE):
        return Digit(pixels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    bright = float(np.median(border)) > 127
    small = ImageOps.pad(
        ImageOps.invert(grey) if bright else grey,
        (FIELD_SIZE, FIELD_SIZE),
        method=Image.Resampling.BOX if max(grey.size) > FIELD_SIZE else Image.Resampling.BICUBIC,
        color=0,
    )
    return Digit(np.asarray(small))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white
