"""Curves of loss, error and learning rate over the epochs, of one run or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, Canvas, Heading, drawing
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Points = npt.NDArray[np.float64]  # [n, 2]: epochs, value

QUANTITIES = {
    "loss": "Loss (mean cross-entropy)",
    "error": "Error (% of the images)",
    "learning_rate": "Learning rate",
}
NOTE = "line: train, smoothed, while the weights change · points: after the epoch"
_SPLITS = {
    "train": {"color": COLOURS[0]},
    "validation": {"color": COLOURS[2], "marker": "^"},
    "test": {"color": COLOURS[1], "marker": "s"},
}
_MARKERS = "osv^DPX"
_MAX_POINTS = 1_000  # of a line; more rows are averaged
_MAX_LABELS = 6  # runs whose last values are written


@dataclass(frozen=True)
class RunCurves:
    """The metrics of a run: the rows of `metrics.csv` and, where it has them, of `steps.csv`."""

    name: str
    rows: Rows
    steps: Rows = ()


def draw_curves(heading: Heading, runs: Sequence[RunCurves]) -> bytes:
    """Draw loss and error beside each other, and below them the learning rate, as a PNG.

    Loss and error have logarithmic axes. One run is drawn by split, each row of `steps.csv` faint;
    several by run, each in its colour and marker. What was not measured is left out.
    """
    with drawing(heading, 10.8, 6.05 + _legend_height(runs)) as canvas:
        _draw(canvas.axes(0.75, 0.35, 3.5, 3.1), "loss", runs)
        _draw(canvas.axes(6.0, 0.35, 3.5, 3.1), "error", runs)
        _draw(canvas.axes(0.75, 4.3, 8.75, 0.95), "learning_rate", runs)
        _legend(canvas, runs)
        return canvas.png()


def draw_curve(quantity: str, name: str, runs: Sequence[RunCurves]) -> bytes:
    """Draw one of `QUANTITIES` alone, as `draw_curves` does, for a narrow page."""
    heading = Heading(QUANTITIES[quantity], name)
    with drawing(heading, 5.6, 3.9 + _legend_height(runs)) as canvas:
        axes = canvas.axes(0.8, 0.1, 3.5, 3.0)
        _draw(axes, quantity, runs)
        axes.set_title("")
        _legend(canvas, runs, "" if quantity == "learning_rate" else NOTE)
        return canvas.png()


def _legend_height(runs: Sequence[RunCurves]) -> float:
    return 0.35 + 0.22 * len(runs) if len(runs) > 1 else 0.0


def _legend(canvas: Canvas, runs: Sequence[RunCurves], note: str = NOTE) -> None:
    x, y = 0.3 / canvas.width, 0.12 / canvas.height
    if len(runs) == 1:
        canvas.figure.text(x, y, note, color=GREY, fontsize=9)
        return
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **_look(number)) for number in range(len(runs))]
    names = [truncate_middle(sanitize(run.name), int(10 * canvas.width)) for run in runs]
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.5 * x, 0.0)}
    canvas.figure.legend(lines, names, title=note, alignment="left", **place, title_fontsize=9)


def _look(number: int) -> dict[str, Any]:
    """Seven colours times seven markers: no pair is used twice among 49 runs."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": _MARKERS[(place + turn) % len(_MARKERS)]}


class _Series(NamedTuple):
    """A line or some points, with the text before the last value; None: it is not written."""

    points: Points
    look: dict[str, Any]
    label: str | None = None


def _series(run: RunCurves, quantity: str, own: Mapping[str, Any]) -> Iterator[_Series]:
    """Return what is drawn of a run: of one run alone by split, else with a look of its own."""
    steps = _by_step(run, quantity)
    if quantity == "learning_rate":
        points = steps if len(steps) else _by_epoch(run, quantity, "train")
        yield _Series(points, {"color": GREY, **own, "marker": ""}, None if own else "")
        return
    line = _smoothed(steps) if len(steps) else _by_epoch(run, quantity, "train")
    if len(steps) and not own:
        yield _Series(steps, {**_SPLITS["train"], "alpha": 0.3, "linewidth": 0.6})
    yield _Series(line, {**_SPLITS["train"], **own, "marker": ""}, None if own else "train ")
    for split in ("test",) if own else ("validation", "test"):
        points = _by_epoch(run, quantity, split)
        look = {**_SPLITS[split], **own, "linestyle": "none", "clip_on": False}
        look["markersize"] = 4.5 if len(points) <= 40 else 2.0
        yield _Series(points, look, "" if own else f"{split} ")


def _draw(axes: Axes, quantity: str, runs: Sequence[RunCurves]) -> None:
    from matplotlib.ticker import MaxNLocator

    is_one = len(runs) == 1
    looks = [{} if is_one else _look(number) for number in range(len(runs))]
    drawn = (_series(run, quantity, own) for run, own in zip(runs, looks, strict=True))
    series = [one for of_run in drawn for one in of_run if len(one.points)]
    axes.set(title=QUANTITIES[quantity], xlabel="epochs", axisbelow=True)
    axes.grid(visible=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0, max((one.points[-1, 0] for one in series), default=1.0))
    values = np.array([y for one in series if "alpha" not in one.look for y in one.points[:, 1]])
    _scale(axes, values, is_logarithmic=quantity != "learning_rate")
    for points, look, _ in series:
        axes.plot(points[:, 0], np.maximum(points[:, 1], axes.get_ylim()[0]), **look)
    unit = " %" if quantity == "error" else ""
    ends = [
        (points[-1], f"{label}{points[-1, 1]:.3g}{unit}", str(look["color"]))
        for points, look, label in series
        if label is not None
    ]
    if len(ends) <= _MAX_LABELS:
        _label_ends(axes, ends)


def _scale(axes: Axes, values: npt.NDArray[np.float64], *, is_logarithmic: bool) -> None:
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


def _label_ends(axes: Axes, labels: Sequence[tuple[Points, str, str]]) -> None:
    """Write values right of their points, [2], moved apart where they would touch."""
    to_dots, lowest, below = axes.transData.transform, axes.get_ylim()[0], -np.inf
    for (x, y), text, colour in sorted(labels, key=lambda label: float(label[0][1])):
        height = to_dots((x, max(y, lowest)))[1]
        below = max(float(height), below + 0.17 * DPI)
        look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(
            text, (x, max(y, lowest)), (5, (below - height) * 72 / DPI), color=colour, **look
        )


def _by_epoch(run: RunCurves, quantity: str, split: str) -> Points:
    """Return a value per epoch; a mean over the epoch stands at its middle."""
    key = {"loss": f"{split}_loss", "error": f"{split}_accuracy"}.get(quantity, quantity)
    shift = 0.5 if split == "train" and quantity != "learning_rate" else 0.0
    return _points(((row["epoch"] - shift, row.get(key)) for row in run.rows), quantity)


def _by_step(run: RunCurves, quantity: str) -> Points:
    """Return the rows of `steps.csv`, averaged to at most `_MAX_POINTS`, by epochs done."""
    key = "accuracy" if quantity == "error" else quantity
    num_epochs = run.rows[-1]["epoch"] if run.rows else 0
    num_steps = max((row["step"] for row in run.steps if row["epoch"] <= num_epochs), default=0)
    if not num_steps:
        return np.empty((0, 2))
    scale = num_epochs / num_steps  # of the complete epochs, so it is exact
    points = _points(((row["step"] * scale, row[key]) for row in run.steps), quantity)
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return np.array([(group[-1, 0], group[:, 1].mean()) for group in groups]).reshape(-1, 2)


def _points(pairs: Iterator[tuple[float, float | None]], quantity: str) -> Points:
    found = np.array([pair for pair in pairs if pair[1] is not None], float).reshape(-1, 2)
    if quantity == "error":  # of an accuracy, in percent
        found[:, 1] = 100 * (1 - found[:, 1])
    return np.asarray(found[np.isfinite(found).all(axis=1)])


def _smoothed(points: Points) -> Points:
    """Return the centred moving average over a 40th of the points, over fewer at both ends."""
    kernel = np.ones(min(2 * (len(points) // 80) + 3, len(points)))
    smoothed = points.copy()
    sums, counts = (np.convolve(y, kernel, "same") for y in (points[:, 1], np.ones(len(points))))
    smoothed[:, 1] = sums / counts
    return smoothed
