"""From a picture to the glyphs in it: the stages in their order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_ce.data.mnist_format import fit_glyph
from mnist_ce.reader.binarize import (
    REACH,
    Ink,
    Plane,
    even_out,
    find_ink,
    merge_colours,
    obvious_polarity,
)
from mnist_ce.reader.components import NEAR, Group, Part, find_parts, group_parts
from mnist_ce.reader.image_io import to_planes
from mnist_ce.reader.mnist_like import as_it_is
from mnist_ce.reader.ruled_lines import erase_lines
from mnist_ce.reader.split_touching import cuts
from mnist_ce.reader.stroke_width import normalise_weight

__all__ = ["Digit", "Reading", "Stages", "find_digits", "light_of"]

Stages: TypeAlias = dict[str, NDArray[np.generic]]

WIDE = 0.25  # how far apart the pieces of a badly broken digit are; see `belong`
CLOSE = 0.6  # of the picture's longer side; a digit that fills more needs no closer look
LIGHT_PRIOR = 0.8  # light ink on dark is the rarer case
WORTH_ASKING = 0.2  # of the best reading's likeness


@dataclass(frozen=True)
class Digit:
    """One digit of a picture.

    Args:
        glyph: uint8 [28, 28], ink bright on black.
        box: (top, left, bottom, right) at the working size of the picture.
        splits: The ways to take it for several digits that touch, each from left to right.
    """

    glyph: NDArray[np.uint8]
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    splits: tuple[tuple[Digit, ...], ...] = ()


@dataclass
class Reading:
    """One way to understand a picture.

    Args:
        digits: From left to right; one of them where a single digit was asked for.
        num_found: How many digits there seem to be.
        likeness: How much the ink looks like writing; to compare readings of one picture.
        soundness: The same whatever the size of the writing, in [0, 1]: small where its edges are
            soft, where it runs along the border, or where there is much else that could be ink.
        stages: The picture after each stage, by name; uint8, bool or float32 [h, w].
    """

    digits: list[Digit]
    num_found: int = 1
    likeness: float = 1.0
    soundness: float = 1.0
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
        where that is not out of the question, and for each a digit of near pieces, or one of
        pieces further apart. Empty where there is no ink.
    """
    ready = as_it_is(image)
    if ready is not None:
        return [Reading([Digit(ready)], stages={"glyph": ready} if keep_stages else {})]
    light = light_of(image)
    even = even_out(light)
    polarity = obvious_polarity(even)
    polarities = (True, False) if polarity is None else (polarity,)
    looks = []
    for is_dark in polarities:
        seen = look(even, is_dark)
        if seen is not None and (unruled := erase_lines(even, seen.ink)) is not None:
            seen = look(unruled, is_dark) or seen
        if seen is not None:
            looks.append(seen)
    looks.sort(key=lambda seen: -seen.likeness)
    readings = []
    for seen in looks:
        if seen.likeness < WORTH_ASKING * looks[0].likeness:
            break
        options = [seen]
        if not multi and (wider := wider_look(seen)) is not None:
            options.append(wider)
        for option in options:
            reading = read(option, multi)
            if keep_stages:
                reading.stages = {"light": light, "even": seen.light / 1.3, **reading.stages}
            readings.append(reading)
    return readings


def light_of(image: Image.Image) -> Plane:
    """Return the one plane of light in which ink is looked for, float32 [h, w]."""
    return merge_colours(to_planes(image))


@dataclass(frozen=True)
class Look:
    """The light in a picture, the ink in it, and the groups that it forms, best first."""

    light: Plane
    ink: Ink
    labels: NDArray[np.int32]
    parts: list[Part]
    groups: list[Group]
    near: float  # see `belong`

    @property
    def total_score(self) -> float:
        """The score of all ink together."""
        return sum(part.score for part in self.parts)

    @property
    def likeness(self) -> float:
        """How much the best group looks like writing, and how much of what does it explains."""
        best = self.groups[0]
        explained = best.score / self.total_score
        return best.score * explained * (1.0 if self.ink.is_dark else LIGHT_PRIOR)


def read(seen: Look, multi: bool) -> Reading:
    """Cut out the digits of one look at a picture."""
    main = seen.groups[0]
    row = row_of(seen.groups)
    stages: Stages = {"ink": seen.ink.levels.clip(0, 1), "mask": seen.ink.mask}
    if multi and len(row) > 1:
        cut = [cut_out(seen, group) for group in row]
    else:
        near = look_closer(seen, main)
        stages["close"] = near.ink.levels.clip(0, 1)
        cut = [cut_out(near, near.groups[0])]
    for place, (digit, drawn) in enumerate(cut):
        mark = f" {place}" if len(cut) > 1 else ""
        stages |= {f"digit{mark}": drawn, f"glyph{mark}": digit.glyph}
    explained = sum(group.score for group in row) / seen.total_score
    soundness = main.likeness * explained
    return Reading([digit for digit, _ in cut], len(row), seen.likeness, soundness, stages)


def row_of(groups: list[Group]) -> list[Group]:
    """The main group and those that look like its neighbours in a row, from left to right."""
    main = groups[0]
    row = [main]
    for group in groups[1:]:
        top, _, bottom, _ = group.box
        middle = (top + bottom) / 2
        if (
            0.5 * main.size < group.size < 2 * main.size
            and group.score > 0.25 * main.score
            and abs(middle - (main.box[0] + main.box[2]) / 2) < 0.6 * main.size
        ):
            row.append(group)
    return sorted(row, key=lambda group: group.box[1])


def wider_look(seen: Look) -> Look | None:
    """Return a look that takes more distant parts for pieces of the best group, if there are such.

    Which is right, a badly broken digit or a whole one beside something else, is settled by what
    the network makes of either.
    """
    groups = group_parts(seen.parts, seen.labels, WIDE)
    if len(groups[0].parts) == len(seen.groups[0].parts):
        return None
    return replace(seen, groups=groups, near=WIDE)


def look(light: Plane, is_dark: bool, reach: float = REACH, near: float = NEAR) -> Look | None:
    """Find ink of one polarity and group it; None where there is none."""
    ink = find_ink(light, is_dark, reach)
    if ink is None:
        return None
    labels, parts = find_parts(ink)
    groups = group_parts(parts, labels, near)
    return Look(light, ink, labels, parts, groups, near) if groups else None


def look_closer(first: Look, group: Group) -> Look:
    """Look again at the surroundings of one digit, with a square that fits its strokes.

    What is elsewhere in the picture no longer sets the threshold, and shadows wider than a few
    strokes are taken as paper.
    """
    top, left, bottom, right = group.box
    light = first.light
    if group.size > CLOSE * max(light.shape):
        return replace(first, groups=[group])
    margin = round(0.3 * group.size) + 4
    rows = slice(max(0, top - margin), bottom + margin)
    columns = slice(max(0, left - margin), right + margin)
    part = light[rows, columns]
    stroke = max(p.stroke for p in group.parts)
    reach = min(REACH, (4 * stroke + 5) / max(part.shape))
    second = look(part, first.ink.is_dark, reach, first.near)
    if second is None or second.groups[0].size < 0.6 * group.size:
        return replace(first, groups=[group])
    return second


def cut_out(seen: Look, group: Group) -> tuple[Digit, Plane]:
    """Cut a digit out of its picture, with the ways to take it for several, and make it a glyph."""
    top, left, bottom, right = group.box
    margin = 2
    rows = slice(max(0, top - margin), bottom + margin)
    columns = slice(max(0, left - margin), right + margin)
    wanted = np.zeros(int(seen.labels.max()) + 1, dtype=bool)
    wanted[[p.label for p in group.parts]] = True
    inside = wanted[seen.labels[rows, columns]]
    near = ndimage.binary_dilation(inside, np.ones((3, 3)))
    levels = np.where(near, seen.ink.levels[rows, columns], 0).clip(0, 1.2).astype(np.float32)
    drawn = normalise_weight(levels)
    splits = tuple(
        tuple(Digit(fit_glyph(normalise_weight(piece)), group.box) for piece in pieces)
        for pieces in cuts(levels)
        if all((piece > 0.5).any() for piece in pieces)
    )
    return Digit(fit_glyph(drawn), group.box, splits), drawn
