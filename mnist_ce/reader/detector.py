"""Whether a glyph is a digit at all: a small network of its own, trained on what is none.

The confidence of a network that has only ever seen digits says little about letters: most of them
look to it like some digit. This one, 784 → 256 → 1, was trained to tell MNIST's training digits
from letters of several fonts, scribbles, garments, noise and clutter
(`python -m scripts.train_detector` makes it again). It does not depend on the weights that
read the digits, so that new weights need no new threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detector", "demanded", "load_detector"]

FILE = Path(__file__).with_name("detector.npz")
# Of hard pictures of digits 3 % are less sound, of noise in which any ink was found 95 %; what was
# compared: docs/log.md.
SOUND = 0.5
CAUTION = 2.0


@dataclass(frozen=True)
class Detector:
    """Weights of the network and the threshold that goes with them.

    Args:
        hidden_weight: float32 [784, hidden].
        hidden_bias: float32 [hidden].
        output_weight: float32 [hidden].
        output_bias: A number.
        threshold: The lowest score of a digit; at most 1 % of MNIST's digits have less.
    """

    hidden_weight: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output_weight: NDArray[np.float32]
    output_bias: float
    threshold: float

    def scores(self, glyphs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the log-odds that each glyph is a digit.

        Args:
            glyphs: uint8 [n, 28, 28].

        Returns:
            float32 [n].
        """
        pixels = glyphs.reshape(len(glyphs), -1).astype(np.float32) / np.float32(255)
        hidden = np.maximum(pixels @ self.hidden_weight + self.hidden_bias, 0)  # [n, hidden]
        scores: NDArray[np.float32] = hidden @ self.output_weight + np.float32(self.output_bias)
        return scores


def demanded(threshold: float, soundness: float) -> float:
    """Return the score that a digit must have, given how sound its ink is.

    Args:
        threshold: The score for sound ink.
        soundness: See `Reading`.
    """
    return threshold + CAUTION * max(0.0, math.log(SOUND / max(soundness, 1e-9)))


@cache
def load_detector() -> Detector:
    """Return the shipped detector."""
    with np.load(FILE, allow_pickle=False) as content:
        return Detector(
            hidden_weight=content["hidden_weight"].astype(np.float32),
            hidden_bias=content["hidden_bias"].astype(np.float32),
            output_weight=content["output_weight"].astype(np.float32),
            output_bias=float(content["output_bias"]),
            threshold=float(content["threshold"]),
        )
