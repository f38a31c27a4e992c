"""The pictures of a run, each a function from plain arrays to the bytes of a PNG file.

matplotlib is imported when the first picture is drawn, not before, and only its `Figure` and Agg
canvas are used, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

from mnist_ce.report.plots.calibration import draw_calibration
from mnist_ce.report.plots.canvas import Heading
from mnist_ce.report.plots.confusion import draw_confusion_matrix
from mnist_ce.report.plots.curves import draw_curves, draw_overlaid_curves
from mnist_ce.report.plots.mistakes import draw_mistakes
from mnist_ce.report.plots.weights import draw_weights

__all__ = [
    "Heading",
    "draw_calibration",
    "draw_confusion_matrix",
    "draw_curves",
    "draw_mistakes",
    "draw_overlaid_curves",
    "draw_weights",
]
