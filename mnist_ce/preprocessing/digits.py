"""From a picture to the glyphs in it: the stages in their order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_ce.glyph import fit_glyph
from mnist_ce.preprocessing.ink import REACH, Ink, Plane, even_out, find_ink, merge_colours
from mnist_ce.preprocessing.parts import Group, find_parts, group_parts
from mnist_ce.preprocessing.reading import to_planes
from mnist_ce.preprocessing.ready import as_it_is
from mnist_ce.preprocessing.stroke import normalise_weight

__all__ = ["Digit", "Reading", "Stages", "find_digits"]

Stages: TypeAlias = dict[str, NDArray[np.generic]]

LIGHT_PRIOR = 0.8  # light ink on dark is the rarer case
WORTH_ASKING = 0.1  # of the best reading's likeness


@dataclass(frozen=True)
class Digit:
    """One digit of a picture.

    Args:
        glyph: uint8 [28, 28], ink bright on black.
        box: (top, left, bottom, right) at the working size of the picture.
    """

    glyph: NDArray[np.uint8]
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class Reading:
    """One way to understand a picture.

    Args:
        digits: From left to right; one of them where a single digit was asked for.
        num_found: How many digits there seem to be.
        likeness: How much the ink looks like writing; to compare readings of one picture.
        stages: The picture after each stage, by name; uint8, bool or float32 [h, w].
    """

    digits: list[Digit]
    num_found: int = 1
    likeness: float = 1.0
    stages: Stages = field(default_factory=dict, repr=False)


def find_digits(
    image: Image.Image, *, multi: bool = False, keep_stages: bool = False
) -> list[Reading]:
    """Find the digit, or the digits, in a picture.

    Args:
        image: As `open_picture` gives it.
        multi: Look for a row of digits.
        keep_stages: Keep the picture after each stage.

    Returns:
        What the picture may show, the likeliest first: dark ink on light, or light ink on dark
        where that is not out of the question. Empty where there is no ink.
    """
    ready = as_it_is(image)
    if ready is not None:
        return [Reading([Digit(ready)], stages={"glyph": ready} if keep_stages else {})]
    light = merge_colours(to_planes(image))
    even = even_out(light)
    looks = [seen for is_dark in (True, False) if (seen := look(even, is_dark)) is not None]
    looks.sort(key=lambda seen: -seen.likeness)
    readings = []
    for seen in looks:
        if seen.likeness < WORTH_ASKING * looks[0].likeness:
            break
        reading = read(even, seen, multi)
        if keep_stages:
            reading.stages = {"light": light, "even": even / 1.3} | reading.stages
        readings.append(reading)
    return readings


@dataclass(frozen=True)
class Look:
    """The ink of a picture and the groups that it forms, best first."""

    ink: Ink
    labels: NDArray[np.int32]
    groups: list[Group]
    total_score: float

    @property
    def likeness(self) -> float:
        """How much the best group looks like writing, and how much of what does it explains."""
        best = self.groups[0]
        explained = best.score / self.total_score
        return best.score * explained * (1.0 if self.ink.is_dark else LIGHT_PRIOR)


def read(light: Plane, seen: Look, multi: bool) -> Reading:
    """Cut out the digits of one look at a picture."""
    main = seen.groups[0]
    near = look_closer(light, seen, main)
    digit, drawn = cut_out(near.ink, near.groups[0], near.labels)
    others = [g for g in seen.groups[1:] if g.size > 0.5 * main.size and g.score > 0.4 * main.score]
    stages: Stages = {
        "ink": seen.ink.levels.clip(0, 1),
        "mask": seen.ink.mask,
        "close": near.ink.levels.clip(0, 1),
        "digit": drawn,
        "glyph": digit.glyph,
    }
    return Reading([digit], 1 + len(others), seen.likeness, stages)


def look(light: Plane, is_dark: bool, reach: float = REACH) -> Look | None:
    """Find ink of one polarity and group it; None where there is none."""
    ink = find_ink(light, is_dark, reach)
    if ink is None:
        return None
    labels, parts = find_parts(ink)
    groups = group_parts(parts, labels)
    return Look(ink, labels, groups, sum(part.score for part in parts)) if groups else None


def look_closer(light: Plane, first: Look, group: Group) -> Look:
    """Look again at the surroundings of one digit, with a square that fits its strokes.

    What is elsewhere in the picture no longer sets the threshold, and shadows wider than a few
    strokes are taken as paper.
    """
    top, left, bottom, right = group.box
    margin = round(0.3 * group.size) + 4
    rows = slice(max(0, top - margin), bottom + margin)
    columns = slice(max(0, left - margin), right + margin)
    part = light[rows, columns]
    stroke = max(p.stroke for p in group.parts)
    reach = min(REACH, (4 * stroke + 5) / max(part.shape))
    second = look(part, first.ink.is_dark, reach)
    if second is None or second.groups[0].size < 0.6 * group.size:
        return replace(first, groups=[group])
    return second


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
