"""Out-of-distribution detector: a 784-384-64-1 MLP trained to tell digits from other marks.

The confidence of a network trained on digits alone says little about letters, most of which it
takes for some digit. `python -m scripts.train_detector` trains this one, which is independent of
the weights that classify: new weights need no new threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("detector.npz")
# 3 % of hard digit images and 95 % of noise with any foreground fall below this quality.
MIN_QUALITY = 0.5
# Of 0, 1, 2 and 3: noise rejected 89, 96, 98, 99 %; of 1,854 hard digits 4, 5, 6, 7 (docs/log.md).
QUALITY_PENALTY = 2.0
# Enlarged digits of few pixels have soft edges: without a limit a fifth of UCI's was rejected.
MAX_QUALITY_PENALTY = 2.5


@dataclass(frozen=True)
class DigitDetector:
    """Weights of the detector, float32, and the threshold that goes with them."""

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    """Weight [inputs, outputs] and bias [outputs] of each layer: 784 → 384 → 64 → 1."""
    threshold: float  # the lowest score of a digit; at most 1 % of MNIST's digits score less

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the log-odds, float32 [n], that images, uint8 [n, 28, 28], are digits."""
        hidden = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)  # [n, 784]
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0)  # → [n, outputs]
        weight, bias = self.layers[-1]
        scores: NDArray[np.float32] = (hidden @ weight + bias)[:, 0]
        return scores


def adjusted_threshold(threshold: float, foreground_quality: float) -> float:
    """Return the score required of a digit: higher than `threshold` below `MIN_QUALITY`."""
    shortfall = max(0.0, math.log(MIN_QUALITY / max(foreground_quality, 1e-9)))
    return threshold + min(QUALITY_PENALTY * shortfall, MAX_QUALITY_PENALTY)


@cache
def load_detector() -> DigitDetector:
    with np.load(FILE, allow_pickle=False) as content:
        arrays = {name: content[name].astype(np.float32) for name in content.files}
        threshold = float(arrays.pop("threshold"))
    numbers = range(len(arrays) // 2)
    layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in numbers)
    return DigitDetector(layers, threshold)
