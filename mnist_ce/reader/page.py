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
LEVELS = (0.25, 0.4, 0.55, 0.7, 0.85)  # between desk and page; the straightest edges count
RULE_PX, SMALL_PX = 5, 9  # dark lines on the page, and bright things on the desk, are narrower
MIN_AREA, MIN_OVERLAP = 0.1, 0.93  # of the image; of the region and its quadrilateral
MAX_SKEW = np.radians(30)  # of a corner from a right angle, in perspective
MAX_CUT_SIDES = 1  # by the image's border; the lit part of a page in half a shadow has 2 or 3
EDGE_PX, MAX_EDGE_LEVEL = 3.0, 0.88  # across an edge the brightness falls at once; of the page's
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
        image = self.image
        if image.mode not in ("L", "RGB") or max(image.size) < MIN_PHOTO_PX:
            return None
        step = max(image.size) / THUMBNAIL_PX
        thumbnail = image.resize(
            (max(1, round(image.width / step)), max(1, round(image.height / step))),
            Image.Resampling.BOX,
        )
        levels = np.asarray(thumbnail, dtype=np.float32)
        # Paper is white: of a bright desk, the least of three channels seldom is.
        corners = find_quadrilateral(levels if levels.ndim == 2 else levels.min(axis=2))
        if corners is None:
            return None
        corners = step * (corners + INSET * (corners.mean(axis=0) - corners))
        sides = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
        width, height = (round(float(max(sides[i], sides[i + 2]))) for i in (0, 1))
        flat = perspective(width, height, corners)  # pixels of the page → of the image
        coefficients = tuple(flat.ravel()[:8].tolist())
        page = image.transform(
            (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
        )
        to_whole = flat * [width, width, 1] / np.array([[image.width], [image.width], [1]])
        return View(page, self.to_image @ to_whole)

    def turned(self, quarters: int) -> View:
        """Return the view turned counterclockwise."""
        if quarters == 0:
            return self
        image = self.image.transpose(Image.Transpose.ROTATE_90)
        scale = image.width / self.image.width
        back = np.array([[0, -scale, 1], [scale, 0, 0], [0, 0, 1]])
        return View(image, self.to_image @ back, self.rotation + 90).turned(quarters - 1)


def find_quadrilateral(levels: FloatImage) -> NDArray[np.float64] | None:
    """Return the corners of a bright region with four straight edges, or None.

    They are x and y, [4, 2], clockwise from the upper left.
    """
    bright = float(np.percentile(levels, 90))
    border = np.concatenate([levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]])
    if (border < MIN_DESK_LEVEL * bright).mean() < MIN_DESK_FRACTION:
        return None
    dark = float(np.percentile(levels, 10))
    smooth = ndimage.grey_closing(levels, (RULE_PX, RULE_PX))
    smooth = ndimage.grey_opening(smooth, (SMALL_PX, SMALL_PX))
    best, corners = MIN_OVERLAP, None
    for level in LEVELS:
        regions, count = ndimage.label(smooth > dark + level * (bright - dark))
        if not count:
            continue
        region = regions == np.bincount(regions.ravel())[1:].argmax() + 1
        found, overlap = fit_quadrilateral(region)
        if overlap > best and has_edges(smooth, found):
            best, corners = overlap, found
    return corners


def fit_quadrilateral(region: Mask) -> tuple[NDArray[np.float64], float]:
    """Return the quadrilateral of straight lines along a region's sides, and their overlap.

    The overlap, intersection over union with the region without holes, is 0 where it is no page.
    """
    height, width = region.shape
    filled, sides, num_cut = np.ones_like(region), [], 0
    for across in (region, region.T):  # its upper and lower, its left and right side
        depth, place = len(across), np.arange(len(across))[:, None]
        first, last = across.argmax(axis=0), depth - across[::-1].argmax(axis=0)  # exclusive
        between = (place >= first) & (place < last) & across.any(axis=0)
        filled &= between if across is region else between.T
        columns = np.flatnonzero(across.any(axis=0))
        for side, end in ((first, 0), (last, depth)):
            num_cut += int((side[columns] == end).mean() > 0.5)
            sides.append((columns + 0.5, side[columns].astype(np.float64)))
    if num_cut > MAX_CUT_SIDES or filled.mean() < MIN_AREA:
        return np.zeros((4, 2)), 0.0
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    for _ in range(3):  # each side ends at the corners, which the lines of the others give
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
        ends = ((x0, x1), (x3, x2), (y0, y3), (y1, y2))
        top, bottom, left, right = map(fit_line, sides, ends)
        pairs = ((top, left), (top, right), (bottom, right), (bottom, left))
        corners = np.array([intersection(level, upright) for level, upright in pairs])
    edges = np.roll(corners, -1, axis=0) - corners
    angles = np.diff(np.unwrap(np.arctan2(edges[:, 1], edges[:, 0])))
    if np.abs(angles - np.pi / 2).max() > MAX_SKEW:
        return corners, 0.0
    page = Image.new("1", (width, height))
    ImageDraw.Draw(page).polygon([(x - 0.5, y - 0.5) for x, y in corners.tolist()], fill=1)
    inside = np.asarray(page)
    return corners, float((inside & filled).sum() / (inside | filled).sum())


def has_edges(levels: FloatImage, corners: NDArray[np.float64]) -> bool:
    """Return whether the image darkens outside each side that lies within it."""
    along = np.roll(corners, -1, axis=0) - corners  # [4, 2]
    outward = EDGE_PX * np.stack([along[:, 1], -along[:, 0]], axis=1)
    outward /= np.hypot(*along.T)[:, None]
    points = corners[:, None] + along[:, None] * np.linspace(0.1, 0.9, 17)[:, None]  # [4, 17, 2]
    inner, outer = (
        ndimage.map_coordinates(levels, (points + sign * outward[:, None])[..., ::-1].T - 0.5, order=1, mode="nearest")
        for sign in (-1, 1)
    )  # [17, 4]
    is_within = (points >= EDGE_PX) & (points <= np.array(levels.shape[::-1]) - EDGE_PX)
    is_within = is_within.all(axis=2).T
    darkens = outer < MAX_EDGE_LEVEL * inner
    return bool((darkens | ~is_within).mean(axis=0).min() > 0.7)


def fit_line(
    points: tuple[NDArray[np.float64], NDArray[np.float64]], ends: tuple[float, float]
) -> tuple[float, float]:
    """Return slope and intercept of the line of least absolute deviations, y of x between ends."""
    x, y = points
    between = (x >= ends[0]) & (x <= ends[1])
    if between.sum() > 2:
        x, y = x[between], y[between]
    weights, slope, intercept = np.ones_like(x), 0.0, 0.0
    for _ in range(8):
        centre = weights @ x / weights.sum()
        slope = float(weights @ ((x - centre) * y) / max(1e-9, weights @ (x - centre) ** 2))
        intercept = float(weights @ (y - slope * x) / weights.sum())
        weights = 1 / np.maximum(np.abs(y - slope * x - intercept), 0.5)
    return slope, intercept


def intersection(level: tuple[float, float], upright: tuple[float, float]) -> tuple[float, float]:
    """Return where y = a x + b meets x = c y + d."""
    (a, b), (c, d) = level, upright
    y = (a * d + b) / (1 - a * c)
    return c * y + d, y


def perspective(width: float, height: float, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the projection [3, 3] that takes a rectangle's corners to others, from (0, 0) on."""
    rows, values = [], []
    rectangle = ((0, 0), (width, 0), (width, height), (0, height))
    for (x, y), (u, v) in zip(rectangle, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def project(box: Box, matrix: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return the bounds of a projected box: top, left, bottom and right."""
    corners = [(x, y, 1) for x in (box.left, box.right) for y in (box.top, box.bottom)]
    x, y, w = (np.array(corners) @ matrix.T).T
    x, y = x / w, y / w
    return float(y.min()), float(x.min()), float(y.max()), float(x.max())
