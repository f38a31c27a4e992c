"""Binarization: grayscale, illumination, polarity, and the mask of the foreground (the ink)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from scipy import ndimage

from mnist_ce.reader.geometry import FloatImage, Mask

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
STRUCTURING_SIZE_FRACTION = 0.35  # of the longer side: wider than any stroke, narrower than a sheet
OFFSET_DARK, OFFSET_LIGHT = 0.05, 0.25  # of the background's brightness, before dividing by it
MIN_CONTRAST = 0.05  # of the background: 13 of 255 grey levels on white, above JPEG's noise
# Hysteresis thresholds, of the median of clear foreground. Below 1/2, so that the outline of a
# blurred stroke lies outside its middle; no region without pixels that are clearly ink.
LOW_INTENSITY, HIGH_INTENSITY = 0.38, 0.6
NUM_STANDARD_DEVIATIONS = 3  # of the background's noise, which foreground exceeds

MIN_PCA_GAIN = 1.3  # of contrast over noise, for a mixture of colours to replace luma
NOISE_OFFSET = 0.004  # one of 255 levels: rounding makes it, and flat images have no other noise

# Where the light is even already: most of the image is near the median, or all of it is black.
MIN_BRIGHTNESS, EVEN_TOLERANCE, EVEN_FRACTION = 0.08, 0.02, 0.65
# Of the coefficients: no wild slopes from few pixels, and none of a degree above 2
RIDGE = (0, 1e-3, 1e-3, 1e-3, 1e-3, 1e3, 1e-3, 1e3, 1e3)
# What the fitted surface must describe: this fraction of the image to 6 % of its brightness.
FIT_TOLERANCE, MIN_FITTED_FRACTION = 0.06, 0.6

# Polarity: what differs clearly from the median by this fraction of the largest difference.
CLEAR_DIFFERENCE, MIN_CLEAR_DIFFERENCE = 0.3, 0.1
MAX_CLEAR_FRACTION = 0.3  # of the image; a digit covers less
MAX_OTHER_SIDE = 0.02  # of those on one side may be on the other: specks, and ringing of JPEG


@dataclass(frozen=True)
class Foreground:
    """The foreground of an image under one assumption of its polarity; arrays are [h, w]."""

    intensity: FloatImage  # 0 in the background, 1 at the median of clear foreground
    mask: Mask
    is_dark: bool  # whether it is darker than the background
    # 1 where the image changes by half of the foreground's contrast within a short distance, as at
    # the edge of a stroke; 0 where it is even, as in the rim of a shadow.
    edges: FloatImage
    contrast: float = 1.0  # of clear foreground, as a fraction of the background's brightness


def to_grayscale_pca(image: FloatImage) -> FloatImage:
    """Turn [h, w, 1 or 3] into [h, w], by the mixture in which fine structure shows best.

    The mixture is the first principal direction of what remains after subtracting a wide mean.
    Plain luma is kept unless the mixture has clearly more contrast over its noise: red ink on
    blue paper may not show in luma at all.
    """
    if image.shape[2] == 1:
        return np.ascontiguousarray(image[..., 0])
    luma: FloatImage = image @ LUMA_WEIGHTS
    step = max(1, max(luma.shape) // 160)  # on 160 pixels a thin stroke still has one
    rows, columns = luma.shape[0] // step, luma.shape[1] // step
    thumb = image[: rows * step, : columns * step]
    thumb = thumb.reshape(rows, step, columns, step, 3).mean((1, 3))  # → [rows, columns, 3]
    size = max(3, max(thumb.shape) // 4)
    fine = thumb - ndimage.uniform_filter(thumb, (size, size, 0), mode="nearest")
    pixels = fine.reshape(-1, 3)
    magnitude = np.abs(pixels).max(axis=1)
    num_strong = max(8, magnitude.size // 25)  # 4 %: a small digit's ink
    strong = pixels[magnitude >= np.partition(magnitude, -num_strong)[-num_strong]]
    _, vectors = np.linalg.eigh(strong.T @ strong)
    direction = vectors[:, -1] * (1 if vectors[:, -1].sum() >= 0 else -1)
    weights = direction / np.abs(direction).sum()
    quiet = pixels[magnitude <= np.median(magnitude)]

    def signal_to_noise(mixture: NDArray[np.floating]) -> float:
        noise = (quiet @ mixture).std() + NOISE_OFFSET
        return float(np.abs(strong @ mixture).mean() / noise)

    if signal_to_noise(weights) < MIN_PCA_GAIN * signal_to_noise(LUMA_WEIGHTS):
        return luma
    mixed: FloatImage = (image @ weights.astype(np.float32)).astype(np.float32)
    low = float(np.minimum(weights, 0).sum())
    return (mixed - np.float32(low)) / np.float32(np.abs(weights).sum())


def correct_illumination(gray: FloatImage) -> FloatImage:
    """Divide an image [h, w] by a quadratic surface fitted to the slow change of the light.

    The least-squares fit is repeated with less weight on outliers (Tukey's biweight), so that ink,
    shadows and a strip of desk do not bend it. An image that is nearly black, even already, or not
    described by one surface is returned unchanged.
    """
    height, width = gray.shape
    step = max(1, max(height, width) // 32)  # a thousand samples for six coefficients
    small = gray[step // 2 :: step, step // 2 :: step]
    values = small.ravel().astype(np.float64)
    median = float(np.median(values))
    is_even = (np.abs(values - median) < EVEN_TOLERANCE).mean() > EVEN_FRACTION
    if median < MIN_BRIGHTNESS or is_even:
        return gray
    y, x = (2 * (np.arange(length) + 0.5) / length - 1 for length in (height, width))
    samples = np.meshgrid(y[step // 2 :: step], x[step // 2 :: step], indexing="ij")
    grid = polynomial.polyvander2d(samples[0], samples[1], [2, 2]).reshape(
        -1, 9
    )  # 1, x, x², y, y x, …, y² x²
    ridge = values.size * np.diag(RIDGE)
    c = np.array([median, *np.zeros(8)])
    for _ in range(5):  # later weights hardly change
        residuals = np.abs(values - grid @ c)
        # 4.685 deviations: the biweight's usual cutoff; 1.4826 × MAD estimates a deviation
        scale = 4.685 * 1.4826 * float(np.median(residuals)) + 0.02
        weights = np.maximum(1 - (residuals / scale) ** 2, 0) ** 2
        weighted = grid * weights[:, None]
        c = np.linalg.solve(weighted.T @ grid + ridge, weighted.T @ values)
    is_described = np.abs(values - grid @ c) < FIT_TOLERANCE * median
    if is_described.mean() < MIN_FITTED_FRACTION:
        return gray
    surface = polynomial.polygrid2d(y, x, c.reshape(3, 3))
    middle = max(float(np.median(surface)), 0.02)
    # No more than 3.3 times brighter: where the surface falls below, it is extrapolated.
    flattened: FloatImage = (gray / np.maximum(surface, 0.3 * middle)).astype(np.float32)
    return flattened


def detect_polarity(gray: FloatImage) -> bool | None:
    """Return whether the foreground of an evenly lit image [h, w] is dark.

    None where more than 30 % of the pixels differ clearly from the median, or do so on both sides.
    """
    sample = gray[:: max(1, gray.shape[0] // 128), :: max(1, gray.shape[1] // 128)]
    difference = sample - np.median(sample)
    limit = max(MIN_CLEAR_DIFFERENCE, CLEAR_DIFFERENCE * float(np.abs(difference).max()))
    dark, bright = int((difference < -limit).sum()), int((difference > limit).sum())
    is_crowded = dark + bright > MAX_CLEAR_FRACTION * sample.size
    if is_crowded or min(dark, bright) > MAX_OTHER_SIDE * max(dark, bright):
        return None
    return dark > bright if dark or bright else None


def segment_foreground(
    gray: FloatImage, is_dark: bool, structuring_size: float = STRUCTURING_SIZE_FRACTION
) -> Foreground | None:
    """Separate foreground from background for one polarity; None if nothing rises above the noise.

    The background is a closing (an opening for light foreground) by a square wider than any
    stroke, `structuring_size` of the image's longer side: unlike a blur, it follows the sharp edges
    of shadows and sheets. Dividing by it makes ink in shadow as strong as ink in light.
    """
    longer = max(gray.shape)
    # Against the noise of single pixels, which the closing would follow; far below a stroke.
    smooth = ndimage.gaussian_filter(gray, max(0.6, longer / 600), mode="nearest")
    size = max(3, round(structuring_size * longer))
    # Without the offset the division would amplify noise on black, the usual ground of light ink.
    offset = OFFSET_DARK if is_dark else OFFSET_LIGHT
    morphology = ndimage.grey_closing if is_dark else ndimage.grey_opening
    background = morphology(smooth, size=(size, size), mode="nearest")
    difference = background - smooth if is_dark else smooth - background
    thresholded = hysteresis_threshold(difference / (background + offset))
    if thresholded is None:
        return None
    intensity, mask, contrast = thresholded
    window = max(3, round(longer / 60))  # wider than a sharp edge, narrower than a shadow's rim
    swing = ndimage.maximum_filter(smooth, window) - ndimage.minimum_filter(smooth, window)
    edges = (swing / (background + offset) / (0.5 * contrast)).clip(0, 1)
    return Foreground(intensity, mask, is_dark, edges, contrast)


def hysteresis_threshold(difference: FloatImage) -> tuple[FloatImage, Mask, float] | None:
    """Keep regions of high difference from the background, down to a low threshold.

    Returns intensity and mask, as in `Foreground`, and the foreground's contrast; None where that
    is too small or below three standard deviations of the background.
    """
    ordered = np.sort(difference, axis=None)
    n = ordered.size
    # Quantiles below the median, since in a tight crop half of the image may be foreground.
    low, mid = float(ordered[n // 20]), float(ordered[3 * n // 10])
    # A normal's 5 % and 30 % points lie 1.12 deviations apart, its median 0.524 above the latter.
    noise = (mid - low) / 1.12 + 1e-3
    centre = mid + 0.524 * noise
    top = float(ordered[max(0, n - max(12, n // 1000)) :].mean())  # the strongest 12 or 0.1 %
    if top - centre < MIN_CONTRAST:
        return None
    strong = ordered[np.searchsorted(ordered, (centre + top) / 2) :]
    # In an image of one colour, rounding may put the threshold above all of it.
    contrast = float(np.median(strong)) - centre if strong.size else 0.0
    if contrast < max(MIN_CONTRAST, NUM_STANDARD_DEVIATIONS * noise):
        return None
    intensity = ((difference - centre) / contrast).astype(np.float32)
    noise_level = NUM_STANDARD_DEVIATIONS * noise / contrast
    weak = intensity > min(max(LOW_INTENSITY, noise_level), HIGH_INTENSITY)
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    keep = np.zeros(labels.max() + 1, dtype=bool)
    keep[labels[intensity > HIGH_INTENSITY]] = True
    keep[0] = False
    return intensity, keep[labels], contrast
