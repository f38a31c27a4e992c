"""From light to ink: one plane out of three colours, polarity, flattening, and the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.preprocessing.reading import Planes

__all__ = ["Ink", "Plane", "find_ink", "merge_colours"]

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
    """

    levels: Plane
    mask: Mask
    strength: float
    noise: float
    is_dark: bool


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


def find_ink(light: Plane, is_dark: bool) -> Ink | None:
    """Flatten the paper and cut out the ink, on the assumption of one polarity.

    The paper is what a closing (opening, for light ink) by a square wider than any stroke leaves:
    unlike a blur, it follows the sharp edges of shadows and sheets. Dividing by it makes ink in
    shadow as strong as ink in light.

    Args:
        light: float32 [h, w].
        is_dark: Whether ink is darker than paper.

    Returns:
        The ink, or None where nothing rises above the noise.
    """
    longer = max(light.shape)
    smooth = ndimage.gaussian_filter(light, max(0.6, longer / 600), mode="nearest")
    size = max(3, round(REACH * longer))
    if is_dark:
        paper = ndimage.grey_closing(smooth, size=(size, size), mode="nearest")
        contrast = (paper - smooth) / (paper + 0.05)
    else:
        paper = ndimage.grey_opening(smooth, size=(size, size), mode="nearest")
        contrast = (smooth - paper) / (paper + 0.25)
    return _cut(contrast, is_dark)


def _cut(contrast: Plane, is_dark: bool) -> Ink | None:
    flat = np.sort(contrast, axis=None)
    n = flat.size
    # Quantiles below the median, since in a tight crop half of the picture may be ink.
    low, mid = float(flat[n // 10]), float(flat[4 * n // 10])
    noise = (mid - low) / 1.03 + 1e-3  # a normal's 10 % and 40 % points lie 1.03 deviations apart
    centre = mid + 0.253 * noise
    top = float(flat[max(0, n - max(12, n // 1000)) :].mean())
    strong = flat[np.searchsorted(flat, (centre + top) / 2) :]
    strength = float(np.median(strong)) - centre
    if strength < max(MIN_CONTRAST, 5 * noise):
        return None
    levels = ((contrast - centre) / strength).astype(np.float32)
    weak = levels > max(LOW, 3 * noise / strength)
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    seeds = np.unique(labels[levels > HIGH])
    keep = np.zeros(labels.max() + 1, dtype=bool)
    keep[seeds] = True
    keep[0] = False
    return Ink(levels, keep[labels], strength, noise, is_dark)
