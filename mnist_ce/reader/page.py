"""Views of an image: the whole, the page that lies on a desk, and either turned by quarters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_ce.reader.geometry import Box, FloatImage, Mask

THUMBNAIL_PX, MIN_PHOTO_PX = 160, 200  # a page of digits in a smaller image is illegible
MIN_DESK_LEVEL, MIN_DESK_FRACTION = 0.75, 0.3  # of the page's brightness, of the image's border
RULE_PX, SMALL_PX = 5, 9  # dark lines on the page, and bright things on the desk, are narrower
# Thresholds between desk and page: an edge is in the same place at two of them, the rim of a shadow
# or of a lamp's light is not.
LEVELS, MAX_SHIFT_PX = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 2.5
MIN_AREA, MIN_OVERLAP = 0.1, 0.93  # of the image; of the region and its quadrilateral
MAX_SKEW = np.radians(30)  # of a corner from a right angle, in perspective
MAX_CUT_SIDES = 1  # by the image's border; the lit part of a page in half a shadow has 2 or 3
INSET = 0.03  # of the way to the page's middle, for its edge and the error of the fit


@dataclass(frozen=True)
class View:
    """An upright image, or a part of it as seen from above, and where its pixels are in it."""

    image: Image.Image
    to_image: NDArray[np.float64]  # [3, 3]: x and y in widths of the view → pixels of the image
    rotation: int = 0  # degrees counterclockwise by which it was turned

    @classmethod
    def of(cls, image: Image.Image) -> View:
        width = image.info.get("full_size", image.size)[0]
        return cls(image, np.diag([width, width, 1.0]))

    def page(self) -> View | None:
        """Return the page that lies on darker ground, without its perspective, if there is one."""
        image, longer = self.image, max(self.image.size)
        if image.mode not in ("L", "RGB") or longer < MIN_PHOTO_PX:
            return None
        size = [max(1, round(side * THUMBNAIL_PX / longer)) for side in image.size]
        thumbnail = image.resize((size[0], size[1]), Image.Resampling.BOX)
        # Paper is white: of a bright desk, the least of three channels seldom is.
        levels = np.asarray(thumbnail, dtype=np.float32).reshape(*size[::-1], -1).min(axis=2)
        corners = find_quadrilateral(levels)
        if corners is None:
            return None
        corners = (corners + INSET * (corners.mean(axis=0) - corners)) * longer / THUMBNAIL_PX
        sides = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
        width, height = (round(float(max(sides[i], sides[i + 2]))) for i in (0, 1))
        flat = perspective(width, height, corners)  # pixels of the page → of the image
        method, data = Image.Transform.PERSPECTIVE, tuple(flat.ravel()[:8].tolist())
        page = image.transform((width, height), method, data, Image.Resampling.BICUBIC)
        flat *= np.outer([1 / image.width, 1 / image.width, 1], [width, width, 1])
        return View(page, self.to_image @ flat)

    def turned(self, quarters: int) -> View:
        """Return the view turned counterclockwise."""
        if quarters == 0:
            return self
        image = self.image.transpose(Image.Transpose.ROTATE_90)
        scale = image.width / self.image.width
        back = np.array([[0, -scale, 1], [scale, 0, 0], [0, 0, 1]])
        return View(image, self.to_image @ back, self.rotation + 90).turned(quarters - 1)


def project(box: Box, matrix: NDArray[np.float64]) -> Box:
    """Return the bounds of a projected box, in whole pixels."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    corners = [(x, y, g * x + h * y + i) for x in box[1::2] for y in box[::2]]
    columns = [(a * x + b * y + c) / scale for x, y, scale in corners]
    rows = [(d * x + e * y + f) / scale for x, y, scale in corners]
    return Box(round(min(rows)), round(min(columns)), round(max(rows)), round(max(columns)))


def perspective(width: float, height: float, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the projection [3, 3] that takes a rectangle's corners to others, from (0, 0) on."""
    rows = list[list[float]]()
    rectangle = ((0, 0), (width, 0), (width, height), (0, height))
    for (x, y), (u, v) in zip(rectangle, corners.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), corners.ravel()), 1).reshape(3, 3)


def find_quadrilateral(levels: FloatImage) -> NDArray[np.float64] | None:
    """Return the corners of the largest bright region if it has four straight edges, or None.

    They are x and y, [4, 2], clockwise from the upper left.
    """
    dark, bright = np.percentile(levels, (10, 90))
    border = np.concatenate([levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]])
    if (border < MIN_DESK_LEVEL * bright).mean() < MIN_DESK_FRACTION:
        return None
    smooth = ndimage.grey_closing(levels, (RULE_PX, RULE_PX))
    smooth = ndimage.grey_opening(smooth, (SMALL_PX, SMALL_PX))
    previous: NDArray[np.float64] | None = None
    for level in LEVELS:
        regions, _ = ndimage.label(smooth > dark + level * (bright - dark))
        sizes = np.bincount(regions.ravel())[1:]
        corners = fit_quadrilateral(regions == sizes.argmax() + 1) if sizes.size else None
        both = corners is not None and previous is not None
        if both and np.abs(np.diff([previous, corners], axis=0)).max() < MAX_SHIFT_PX:
            return corners
        previous = corners
    return None


def fit_quadrilateral(region: Mask) -> NDArray[np.float64] | None:
    """Return the corners of straight lines along a region's sides, or None if they do not fit."""
    (height, width), sides, num_cut = region.shape, list[NDArray[np.float64]](), 0
    filled = np.ones_like(region)
    for across in (region, region.T):  # its upper and lower, its left and right side
        depth, place = len(across), np.arange(len(across))[:, None]
        first, last = across.argmax(axis=0), depth - across[::-1].argmax(axis=0)  # exclusive
        between = (place >= first) & (place < last) & across.any(axis=0)
        filled &= between if across is region else between.T
        columns = np.flatnonzero(across.any(axis=0))
        for side, end in ((first[columns], 0), (last[columns], depth)):
            num_cut += int((side == end).mean() > 0.5)
            sides.append(np.stack([columns + 0.5, side]))
    if num_cut > MAX_CUT_SIDES or filled.mean() < MIN_AREA:
        return None
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    for _ in range(3):  # each side ends at the corners, which the lines of the others give
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
        ends = ((x0, x1), (x3, x2), (y0, y3), (y1, y2))
        top, bottom, left, right = map(fit_line, sides, ends)
        pairs = ((top, left), (top, right), (bottom, right), (bottom, left))
        # y = a x + b meets x = c y + d
        y = [(a * d + b) / (1 - a * c) for (a, b), (c, d) in pairs]
        corners = np.array([(c * y[i] + d, y[i]) for i, (_, (c, d)) in enumerate(pairs)])
    edges = np.roll(corners, -1, axis=0) - corners
    turns = np.diff(np.unwrap(np.arctan2(edges[:, 1], edges[:, 0])))
    page = Image.new("1", (width, height))
    ImageDraw.Draw(page).polygon([(x - 0.5, y - 0.5) for x, y in corners.tolist()], fill=1)
    inside = np.asarray(page)
    overlap = (inside & filled).sum() / (inside | filled).sum()
    is_page = np.abs(turns - np.pi / 2).max() < MAX_SKEW and overlap > MIN_OVERLAP
    return corners if is_page else None


def fit_line(points: NDArray[np.float64], ends: tuple[float, float]) -> tuple[float, float]:
    """Return slope and intercept of the line of least absolute deviations, y of x between ends."""
    between = (points[0] >= ends[0]) & (points[0] <= ends[1])
    x, y = points[:, between] if between.sum() > 2 else points
    weights, slope, intercept = np.ones_like(x), 0.0, 0.0
    for _ in range(8):
        centre = weights @ x / weights.sum()
        slope = float(weights @ ((x - centre) * y) / max(1e-9, weights @ (x - centre) ** 2))
        intercept = float(weights @ (y - slope * x) / weights.sum())
        weights = 1 / np.maximum(np.abs(y - slope * x - intercept), 0.5)
    return slope, intercept
