"""Curves of groups of runs: the mean over the seeds, and a band from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, Heading, drawing
from mnist_ce.report.plots.curves import Rows
from mnist_ce.system.text import sanitize, truncate_middle


def draw_group_curves(
    quantity: str, heading: Heading, groups: Mapping[str, Sequence[Rows]]
) -> bytes:
    """Draw the `loss` or the `accuracy` of groups, the latter as error in percent.

    A group is given by its label and the rows of `metrics.csv` of each run. The axis is
    logarithmic. Train results are lines with bands, test results squares with bars.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    with drawing(heading, 5.6, 4.4 + 0.22 * len(groups)) as canvas:
        axes = canvas.axes(0.8, 0.1, 4.5, 3.2)
        axes.set(xlabel="epoch", yscale="log", axisbelow=True)
        axes.grid(visible=True, which="both")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(StrMethodFormatter("{x:.3g}"))
        for number, (label, runs) in enumerate(groups.items()):
            colour = COLOURS[number % len(COLOURS)]
            name = truncate_middle(sanitize(f"{label} (n = {len(runs)})"), 60)
            epochs, low, mean, high = _band(runs, f"train_{quantity}")
            axes.plot(epochs, mean, color=colour, label=name)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
            epochs, low, mean, high = _band(runs, f"test_{quantity}")
            look: dict[str, Any] = {"color": colour, "capsize": 3, "marker": "s", "markersize": 4}
            axes.errorbar(epochs, mean, [mean - low, high - mean], linestyle="", **look)
        canvas.figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.03, 0.0),
            title="line: train, during the epoch · square: test\nband and bar: lowest to highest",
            alignment="left",
        )
        return canvas.png()


def _band(runs: Sequence[Rows], key: str) -> npt.NDArray[np.float64]:
    """Return epochs, lowest, mean and highest value, [4, n], where all runs have one."""
    by_epoch: dict[int, list[float]] = {}
    for row in (row for rows in runs for row in rows if row.get(key) is not None):
        value = 100 * (1 - row[key]) if key.endswith("accuracy") else row[key]
        by_epoch.setdefault(row["epoch"], []).append(max(value, 1e-6))  # the axis has no 0
    full = [
        (e, min(v), float(np.mean(v)), max(v)) for e, v in by_epoch.items() if len(v) == len(runs)
    ]
    return np.array(full, dtype=np.float64).reshape(-1, 4).T
