"""Whether an answer given with 90 % is right nine times in ten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mnist_ce.evaluation.calibration import expected_calibration_error
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.report.plots.canvas import COLOURS, GREY, Canvas, Heading, style
from mnist_ce.system.errors import sanitize

__all__ = ["draw_calibration"]

_NUM_BINS = 15
_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": COLOURS[1], "marker": "s", "linestyle": "--"},
    {"color": COLOURS[0], "marker": "o", "linestyle": "-"},
)

Confidences = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def draw_calibration(heading: Heading, series: Mapping[str, tuple[Confidences, Bools]]) -> bytes:
    """Draw reliability diagrams over each other, with the number of answers per bin below.

    The bins drawn are of equal width: of those of equal mass, by which the error is counted, most
    would lie on top of each other at 100 %.

    Args:
        heading: The lines above the picture.
        series: At most two by name, as trained and calibrated: for each image the probability of
            the answer, float [n], and whether it is right, bool [n].
    """
    with style():
        canvas = Canvas(heading, 7.2, 7.6)
        axes = canvas.axes(0.95, 0.8, 5.9, 4.3)
        counts = canvas.axes(0.95, 5.7, 5.9, 1.2)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="as sure as it is right")
        edges = np.linspace(0, 1, _NUM_BINS + 1)
        for look, (name, (confidence, correct)) in zip(_LOOKS, series.items(), strict=False):
            points = [
                (float(confidence[inside].mean()), int(correct[inside].sum()), len(inside))
                for inside in _bins(confidence, _NUM_BINS)
            ]
            x = np.array([mean for mean, _, _ in points])
            y = np.array([hits / total for _, hits, total in points])
            spans = np.array([wilson_interval(hits, total) for _, hits, total in points]).T
            error = expected_calibration_error(confidence, correct)
            axes.errorbar(
                x,
                y,
                yerr=np.maximum(np.abs(spans - y), 0),
                capsize=2.5,
                linewidth=1.4,
                markersize=5,
                label=f"{sanitize(name)}: expected calibration error {100 * error:.2f} %",
                **look,
            )
            counts.hist(
                confidence, bins=edges.tolist(), histtype="step", color=look["color"], linewidth=1.6
            )
        ticks = np.linspace(0, 1, 6)
        for panel in (axes, counts):
            panel.set_xlim(-0.01, 1.01)
            panel.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
            panel.grid(visible=True)
            panel.set_axisbelow(True)
        axes.set_ylim(-0.01, 1.01)
        axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
        axes.set_ylabel("right answers (bars: 95 % interval)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
        counts.set_yscale("log")
        counts.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        counts.set_ylabel("answers")
        counts.set_xlabel("probability of the answer")
        return canvas.png()


def _bins(confidence: Confidences, num_bins: int) -> list[npt.NDArray[np.intp]]:
    """Return the images of each bin that has any."""
    number = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    groups = (np.flatnonzero(number == place) for place in range(num_bins))
    return [group for group in groups if len(group)]
