"""Curves of loss, error and learning rate over the epochs, of runs or of groups of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, drawing
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = NDArray[np.float64]
"""[n, 2]: epochs, value; of a series [n, 4]: epochs, mean, lowest and highest value."""

_TITLES = {
    "loss": "Loss (mean cross-entropy)",
    "error": "Error (% of the images)",
    "learning_rate": "Learning rate",
}
_MARKERS = "os^vDPX"
_MAX_POINTS = 1_000  # of a line
_MAX_LABELS = 6  # series whose last values are written


class RunMetrics(NamedTuple):
    """What `RunDir` reads of a run: the metrics by epoch and by step."""

    epochs: Sequence[Mapping[str, Any]]
    steps: NDArray[Any]


Series = tuple[str, Sequence[RunMetrics]]
"""A name and a run, or the runs of a group, of which the mean and the range are drawn."""


def draw_curves(title: str, subtitle: str, series: Sequence[Series]) -> bytes:
    """Draw loss and error beside each other, and below them the learning rate, as a PNG.

    Loss and error have logarithmic axes. One series is drawn by split; several have a colour and
    marker each. What was not measured is left out.
    """
    num_names = len(series) if len(series) > 1 else 0
    is_of_groups = any(len(runs) > 1 for _, runs in series)
    note = "line: train, smoothed, while the weights change · points: after the epoch"
    if is_of_groups:
        note += "\nmean over the seeds; band and bar: lowest to highest"
    height = 6.05 + (0.35 + 0.22 * num_names if num_names else 0.0) + 0.2 * is_of_groups
    with drawing(title, subtitle, 10.8, height) as canvas:
        _draw(canvas.axes(0.75, 0.35, 3.5, 3.1), "loss", series)
        _draw(canvas.axes(6.0, 0.35, 3.5, 3.1), "error", series)
        _draw(canvas.axes(0.75, 4.3, 8.75, 0.95), "learning_rate", series)
        if not num_names:
            canvas.note(0.3, 0.12, note, fontsize=9)
            return canvas.png()
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], **_look(number)) for number in range(num_names)]
        names = [truncate_middle(sanitize(name), int(10 * canvas.width)) for name, _ in series]
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.15 / canvas.width, 0.0)}
        canvas.figure.legend(lines, names, title=note, alignment="left", **place, title_fontsize=9)
        return canvas.png()


def _look(number: int) -> dict[str, Any]:
    """Seven colours times seven markers: no pair is used twice among 49 series."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": _MARKERS[(place + turn) % len(_MARKERS)]}


class _Line(NamedTuple):
    """A line, or points without one, with the text before the last value; None: not written."""

    points: Points  # [n, 4]
    look: dict[str, Any]
    label: str | None


def _lines(runs: Sequence[RunMetrics], quantity: str, number: int | None) -> Iterator[_Line]:
    """Yield what is drawn of runs: by split without a number, else in the number's look."""
    is_alone, is_rate = number is None, quantity == "learning_rate"
    splits = ("train", "test", "validation")[: 1 if is_rate else 3 if is_alone else 2]
    for place, split in enumerate(splits):
        points = _range([_points(run, quantity, split) for run in runs])
        look, label = _look(place if number is None else number), f"{split} "
        if split == "train":
            look["marker"] = ""
        else:
            size = 4.5 if len(points) <= 40 else 2.0
            look |= {"linestyle": "none", "clip_on": False, "markersize": size}
        if is_rate and is_alone:
            look["color"], label = GREY, ""
        yield _Line(points, look, label if is_alone else None if split == "train" else "")


def _draw(axes: Axes, quantity: str, series: Sequence[Series]) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [None] if len(series) == 1 else range(len(series))
    lines = [
        line
        for (_, runs), number in zip(series, numbers, strict=True)
        for line in _lines(runs, quantity, number)
        if len(line.points)
    ]
    axes.set(title=_TITLES[quantity], xlabel="epochs")
    axes.grid(visible=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0, max((line.points[-1, 0] for line in lines), default=1.0))
    values = [line.points[:, 1:].ravel() for line in lines]
    _set_scale(axes, np.concatenate([*values, []]), is_logarithmic=quantity != "learning_rate")
    for points, look, _ in lines:
        epochs, mean, low, high = np.maximum(points, [0, *[axes.get_ylim()[0]] * 3]).T
        axes.plot(epochs, mean, **look)
        if (high == low).all():
            continue
        if look["marker"]:
            bars = [mean - low, high - mean]
            axes.errorbar(epochs, mean, bars, fmt="none", ecolor=look["color"], capsize=3)
        else:
            axes.fill_between(epochs, low, high, color=look["color"], alpha=0.25, linewidth=0)
    labelled = [line for line in lines if line.label is not None]
    if len(labelled) <= _MAX_LABELS:
        _label_ends(axes, labelled, " %" if quantity == "error" else "")


def _set_scale(axes: Axes, values: NDArray[np.float64], *, is_logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    positive = values[values > 0]
    if not is_logarithmic or not len(positive):
        axes.set_ylim(0, 1.1 * max(values.max(initial=0.0), 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        return
    # Zero has no place on a logarithmic axis: it is drawn at the lower edge.
    low, high = positive.min() / (2 if len(positive) < len(values) else 1.2), 1.2 * positive.max()
    axes.set(yscale="log", ylim=(low, high))
    subs = (1, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(axes: Axes, lines: Sequence[_Line], unit: str) -> None:
    """Write the last values right of their points, moved apart where they would touch."""
    to_dots, lowest, below = axes.transData.transform, axes.get_ylim()[0], -np.inf
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for line in sorted(lines, key=lambda line: float(line.points[-1, 1])):
        x, mean = line.points[-1, :2].tolist()
        place = x, max(mean, lowest)
        height = float(to_dots(place)[1])
        below = max(height, below + 0.17 * DPI)
        text, offset = f"{line.label}{mean:.3g}{unit}", (5, (below - height) * 72 / DPI)
        axes.annotate(text, place, offset, color=line.look["color"], **look)


def _points(run: RunMetrics, quantity: str, split: str) -> Points:
    """Return what was measured, [n, 2], an error in percent: training by step, or else by epoch.

    Loss and error by step are moving averages over a 40th of the steps. The mean of an epoch stands
    at its middle.
    """
    from scipy.ndimage import uniform_filter1d

    is_mean = split == "train" and quantity != "learning_rate"
    key = {"loss": f"{split}_loss", "error": f"{split}_accuracy"}.get(quantity, quantity)
    x = np.array([row["epoch"] - 0.5 * is_mean for row in run.epochs], float)
    y = np.array([row.get(key) for row in run.epochs], float)
    steps = run.steps[run.steps["epoch"] <= len(run.epochs)]  # of complete epochs
    if split == "train" and len(steps):
        x = steps["step"] * (len(run.epochs) / steps["step"].max())
        y = steps["accuracy" if quantity == "error" else quantity]
        if is_mean:
            y = uniform_filter1d(y, 2 * (len(y) // 80) + 3, mode="nearest")
    points = np.column_stack([x, 100 * (1 - y) if quantity == "error" else y])
    points = points[np.isfinite(points).all(axis=1)]  # NaN: not measured
    stride = len(points) // _MAX_POINTS + 1
    return np.asarray(points[::-stride][::-1], np.float64)


def _range(by_run: Sequence[Points]) -> Points:
    """Return mean, lowest and highest value over the runs, [n, 4], where all runs have one."""
    runs = [dict(points.tolist()) for points in by_run]
    common = [x for x in runs[0] if all(x in values for values in runs)]
    values = np.array([[values[x] for x in common] for values in runs])  # [runs, n]
    columns = (common, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return np.stack(columns, axis=1).astype(np.float64)
