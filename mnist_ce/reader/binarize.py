"""From light to ink: one plane out of three colours, polarity, flattening, and the threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.image_io import Planes

__all__ = ["Ink", "Mask", "Plane", "even_out", "find_ink", "merge_colours", "obvious_polarity"]

Plane: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma
REACH = 0.35  # of the longer side: wider than any stroke, narrower than a sheet
MIN_CONTRAST = 0.05
LOW, HIGH = 0.38, 0.6  # hysteresis, as shares of the ink's strength


@dataclass(frozen=True)
class Ink:
    """The ink of a picture, for one guess of its polarity.

    Args:
        levels: float32 [h, w]; 0 is paper and 1 the usual strength of the ink.
        mask: bool [h, w]; where there is ink.
        strength: The contrast of the ink with its paper, in [0, 1].
        noise: The deviation of the paper, in the unit of `strength`.
        is_dark: Whether the ink is darker than its paper.
        edges: float32 [h, w]; 1 where the picture changes by half of the ink's strength within a
            short way, as at the edge of a stroke; 0 where it is even, as in the soft rim of a
            shadow or where a piece of the paper itself was taken for ink.
    """

    levels: Plane
    mask: Mask
    strength: float
    noise: float
    is_dark: bool
    edges: Plane


def merge_colours(planes: Planes) -> Plane:
    """Return the one mixture of the colours in which fine structure shows best.

    Grey is taken unless another mixture has clearly more contrast against its noise: red ink on
    blue paper may not show in grey at all. The mixture is the first principal direction of what
    remains after smoothing, [R, G, B] minus a wide mean.

    Args:
        planes: float32 [h, w, 1 or 3] in [0, 1].

    Returns:
        float32 [h, w] in [0, 1] or a little beyond.
    """
    if planes.shape[2] == 1:
        return np.ascontiguousarray(planes[..., 0])
    grey: Plane = planes @ GREY
    step = max(1, max(grey.shape) // 160)
    thumb = planes[: grey.shape[0] // step * step, : grey.shape[1] // step * step]
    thumb = thumb.reshape(thumb.shape[0] // step, step, thumb.shape[1] // step, step, 3).mean(
        (1, 3)
    )
    size = max(3, max(thumb.shape) // 4)
    fine = thumb - ndimage.uniform_filter(thumb, (size, size, 0), mode="nearest")
    flat = fine.reshape(-1, 3)
    strength = np.abs(flat).max(axis=1)
    strong = flat[
        strength
        >= np.partition(strength, -max(8, strength.size // 25))[-max(8, strength.size // 25)]
    ]
    _, vectors = np.linalg.eigh(strong.T @ strong)
    direction = vectors[:, -1]
    direction = direction * (1 if direction.sum() >= 0 else -1)
    weights = direction / np.abs(direction).sum()
    # contrast in units of the noise, measured on the same pixels
    quiet = flat[strength <= np.median(strength)]

    def clarity(mixture: NDArray[np.floating]) -> float:
        return float(np.abs(strong @ mixture).mean() / (0.004 + (quiet @ mixture).std()))

    if clarity(weights) < 1.3 * clarity(GREY):
        return grey
    mixed: Plane = (planes @ weights.astype(np.float32)).astype(np.float32)
    low = float(np.minimum(weights, 0).sum())
    return (mixed - np.float32(low)) / np.float32(np.abs(weights).sum())


def even_out(light: Plane) -> Plane:
    """Divide by the slow change of the light: a quadratic surface through most of the picture.

    The surface is fitted by least squares, repeated with less weight on what lies far from it
    (Tukey's biweight), so that ink, shadows and a strip of desk do not bend it.

    Args:
        light: float32 [h, w].

    Returns:
        float32 [h, w], 1 where the picture is as the surface.
    """
    height, width = light.shape
    step = max(1, max(height, width) // 32)
    small = light[step // 2 :: step, step // 2 :: step]
    values = small.ravel().astype(np.float64)
    median = float(np.median(values))
    if median < 0.08 or (np.abs(values - median) < 0.02).mean() > 0.65:
        return light  # black, or even already

    def terms(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> list[Plane]:
        y, x = (2 * rows / height - 1)[:, None], (2 * columns / width - 1)[None]
        one = np.ones((rows.size, columns.size))
        return [one, y * one, x * one, y * y * one, x * x * one, x * y]

    grid = np.stack(
        terms(
            np.arange(small.shape[0]) * step + step // 2 + 0.5,
            np.arange(small.shape[1]) * step + step // 2 + 0.5,
        ),
        axis=-1,
    ).reshape(-1, 6)
    ridge = 1e-3 * values.size * np.diag([0, 1, 1, 1, 1, 1])
    coefficients = np.array([median, 0, 0, 0, 0, 0])
    for _ in range(5):
        away = np.abs(values - grid @ coefficients)
        scale = 4.685 * 1.4826 * float(np.median(away)) + 0.02
        weights = np.maximum(1 - (away / scale) ** 2, 0) ** 2
        weighted = grid * weights[:, None]
        coefficients = np.linalg.solve(weighted.T @ grid + ridge, weighted.T @ values)
    y, x = 2 * (np.arange(height) + 0.5) / height - 1, 2 * (np.arange(width) + 0.5) / width - 1
    c = coefficients
    if (np.abs(values - grid @ coefficients) < 0.06 * median).mean() < 0.6:
        return light  # no one surface is most of the picture
    surface = (
        (c[0] + c[1] * y + c[3] * y * y)[:, None]
        + (c[2] * x + c[4] * x * x)
        + c[5] * np.outer(y, x)
    )
    middle = max(float(np.median(surface)), 0.02)
    even: Plane = (light / np.maximum(surface, 0.3 * middle)).astype(np.float32)
    return even


def obvious_polarity(light: Plane) -> bool | None:
    """Tell whether ink is dark, where most of the picture is even and all the rest on one side.

    Args:
        light: float32 [h, w], evened out.

    Returns:
        True for dark ink, False for light ink, None where it takes a closer look.
    """
    sample = light[:: max(1, light.shape[0] // 128), :: max(1, light.shape[1] // 128)]
    away = sample - np.median(sample)
    limit = max(0.1, 0.3 * float(np.abs(away).max()))
    dark, bright = int((away < -limit).sum()), int((away > limit).sum())
    if dark + bright > 0.3 * sample.size or min(dark, bright) > 0.02 * max(dark, bright):
        return None
    return dark > bright if dark or bright else None


def find_ink(light: Plane, is_dark: bool, reach: float = REACH) -> Ink | None:
    """Flatten the paper and cut out the ink, on the assumption of one polarity.

    The paper is what a closing (opening, for light ink) by a square wider than any stroke leaves:
    unlike a blur, it follows the sharp edges of shadows and sheets. Dividing by it makes ink in
    shadow as strong as ink in light.

    Args:
        light: float32 [h, w].
        is_dark: Whether ink is darker than paper.
        reach: The side of the square, over the longer side of the picture.

    Returns:
        The ink, or None where nothing rises above the noise.
    """
    longer = max(light.shape)
    smooth = ndimage.gaussian_filter(light, max(0.6, longer / 600), mode="nearest")
    size = max(3, round(reach * longer))
    if is_dark:
        paper = ndimage.grey_closing(smooth, size=(size, size), mode="nearest")
        contrast = (paper - smooth) / (paper + 0.05)
    else:
        paper = ndimage.grey_opening(smooth, size=(size, size), mode="nearest")
        contrast = (smooth - paper) / (paper + 0.25)
    ink = _cut(contrast, is_dark)
    if ink is None:
        return None
    window = max(3, round(longer / 60))
    swing = ndimage.maximum_filter(smooth, window) - ndimage.minimum_filter(smooth, window)
    swing = swing / (paper + (0.05 if is_dark else 0.25))
    return replace(ink, edges=(swing / (0.5 * ink.strength)).clip(0, 1))


def _cut(contrast: Plane, is_dark: bool) -> Ink | None:
    flat = np.sort(contrast, axis=None)
    n = flat.size
    # Quantiles below the median, since in a tight crop half of the picture may be ink.
    low, mid = float(flat[n // 20]), float(flat[3 * n // 10])
    noise = (mid - low) / 1.12 + 1e-3  # a normal's 5 % and 30 % points lie 1.12 deviations apart
    centre = mid + 0.524 * noise
    top = float(flat[max(0, n - max(12, n // 1000)) :].mean())
    if top - centre < MIN_CONTRAST:
        return None
    strong = flat[np.searchsorted(flat, (centre + top) / 2) :]
    if strong.size == 0:  # a picture of one colour: rounding puts the threshold above all of it
        return None
    strength = float(np.median(strong)) - centre
    if strength < max(MIN_CONTRAST, 3 * noise):
        return None
    levels = ((contrast - centre) / strength).astype(np.float32)
    weak = levels > min(max(LOW, 3 * noise / strength), HIGH)
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    seeds = np.unique(labels[levels > HIGH])
    keep = np.zeros(labels.max() + 1, dtype=bool)
    keep[seeds] = True
    keep[0] = False
    return Ink(levels, keep[labels], strength, noise, is_dark, levels)
