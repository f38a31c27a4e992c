"""Plots of a run, each a function from arrays to the bytes of a PNG file.

matplotlib is imported when the first plot is drawn. Only its `Figure` and Agg canvas are used, so
that nothing global changes and no display is needed.
"""

from mnist_ce.report.plots.canvas import Heading
from mnist_ce.report.plots.curves import QUANTITIES, RunCurves, draw_curve, draw_curves
from mnist_ce.report.plots.evaluation import (
    draw_calibration,
    draw_confusion_matrix,
    reliability_diagram,
    result_line,
)
from mnist_ce.report.plots.grids import (
    draw_attributions,
    draw_differences,
    draw_mistakes,
    draw_weights,
)
from mnist_ce.report.plots.loss import draw_loss

__all__ = [
    "QUANTITIES",
    "Heading",
    "RunCurves",
    "draw_attributions",
    "draw_calibration",
    "draw_confusion_matrix",
    "draw_curve",
    "draw_curves",
    "draw_differences",
    "draw_loss",
    "draw_mistakes",
    "draw_weights",
    "reliability_diagram",
    "result_line",
]
