"""The errors that the network was most sure of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, Canvas, Heading, percent, style
from mnist_ce.system.errors import sanitize, truncate_middle

__all__ = ["draw_mistakes"]

_COLUMNS = 6
_ROWS = 4
_SCALE = 5  # pixels of the picture per pixel of an image
_SIDE = 28 * _SCALE + 2  # with a frame
_PITCH = (192, 228)  # pixels from one image to the next, across and down
_FRAME = 200


def draw_mistakes(
    heading: Heading,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> bytes:
    """Draw up to 24 wrongly answered images, the most confident error first.

    Args:
        heading: The lines above the picture.
        images: uint8 [n, 28, 28], ink bright on black; drawn dark on white.
        labels: int64 [n].
        predictions: int64 [n].
        probabilities: float32 [n, classes].
        class_names: What the classes are called.
    """
    names = [truncate_middle(sanitize(name), 16) for name in class_names]
    wrong = np.flatnonzero(predictions != labels)
    confidence = probabilities[wrong, predictions[wrong]]
    wrong = wrong[np.argsort(-confidence, kind="stable")][: _COLUMNS * _ROWS]
    num_rows = max(-(-len(wrong) // _COLUMNS), 1)
    # All images are one array, which draws far faster than 24 small plots.
    mosaic = np.full((num_rows * _PITCH[1], _COLUMNS * _PITCH[0]), 255, dtype=np.uint8)
    for place, index in enumerate(wrong.tolist()):
        row, column = divmod(place, _COLUMNS)
        framed = np.full((_SIDE, _SIDE), _FRAME, dtype=np.uint8)
        framed[1:-1, 1:-1] = np.kron(255 - images[index], np.ones((_SCALE, _SCALE), np.uint8))
        top, left = row * _PITCH[1], column * _PITCH[0]
        mosaic[top : top + _SIDE, left : left + _SIDE] = framed
    with style():
        height, width = (size / DPI for size in mosaic.shape)
        canvas = Canvas(heading, width + 0.35, height + 0.15)
        axes = canvas.axes(0.35, 0.1, width, height)
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        if not len(wrong):
            axes.text(0, 30, f"No mistakes among {len(labels):,} images.", color=GREY)
        for place, index in enumerate(wrong.tolist()):
            row, column = divmod(place, _COLUMNS)
            answer = predictions[index]
            # The probability of a wrong answer may round to 1 in float32, but it is below.
            sure = percent(min(float(probabilities[index, answer]), 1 - 1e-9))
            for line, (text, colour) in enumerate(
                (
                    (f"is {names[labels[index]]}", COLOURS[0]),
                    (f"said {names[answer]}", COLOURS[1]),
                    (f"{sure}  #{index}", GREY),
                )
            ):
                axes.text(
                    column * _PITCH[0],
                    row * _PITCH[1] + _SIDE + 18 + 19 * line,
                    text,
                    fontsize=9 if line < 2 else 8,
                    color=colour,
                )
        return canvas.png()
