"""Curves of loss, accuracy and learning rate by epoch, of one run or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_ce.report.plots.canvas import COLOURS, Canvas, Heading, drawing
from mnist_ce.system.errors import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

# Train results are taken while the weights still change, each image before its own step.
_SPLITS = (
    ("train", "train, during the epoch", {"color": COLOURS[0], "linestyle": "--", "marker": "o"}),
    ("validation", "validation", {"color": COLOURS[2], "linestyle": "-.", "marker": "^"}),
    ("test", "test", {"color": COLOURS[1], "linestyle": "-", "marker": "s"}),
)
_MARKERS = "osv^DPX"
_HEIGHT = 6.05  # inches


def draw_curves(heading: Heading, rows: Rows) -> bytes:
    """Draw loss and accuracy of each split and the learning rate from the rows of `metrics.csv`.

    What was not measured is None in a row, and is left out.
    """
    with drawing(heading, 10.0, _HEIGHT) as canvas:
        loss, accuracy, rate = _panels(canvas, rows)
        for split, label, look in _SPLITS:
            _line(loss, rows, f"{split}_loss", label=label, **look)
            _line(accuracy, rows, f"{split}_accuracy", label=label, **look)
        for axes in (loss, accuracy):
            if axes.lines:
                axes.legend()
        _line(rate, rows, "learning_rate", color=COLOURS[6], marker="o")
        return canvas.png()


def draw_overlaid_curves(heading: Heading, runs: Sequence[tuple[str, Rows]]) -> bytes:
    """Draw several runs, given by name and rows, over each other, each in its colour and marker."""
    legend_height = 0.35 + 0.22 * len(runs)
    with drawing(heading, 10.0, _HEIGHT + legend_height) as canvas:
        longest = max((rows for _, rows in runs), key=len, default=[])
        loss, accuracy, rate = _panels(canvas, longest)
        for number, (name, rows) in enumerate(runs):
            # Seven colours times seven markers: no pair is used twice among 49 runs.
            turn, place = divmod(number, len(COLOURS))
            marker = _MARKERS[(place + turn) % len(_MARKERS)]
            look: dict[str, Any] = {"color": COLOURS[place], "marker": marker}
            for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
                _line(axes, rows, f"train_{quantity}", linestyle=":", **look)
                _line(axes, rows, f"test_{quantity}", **look)
            label = truncate_middle(sanitize(name), 100)
            _line(rate, rows, "learning_rate", label=label, **look)
        canvas.figure.legend(
            *rate.get_legend_handles_labels(),
            loc="lower left",
            bbox_to_anchor=(0.06, 0.0),
            title="solid: test · dotted: train, during the epoch",
            alignment="left",
        )
        return canvas.png()


def _panels(canvas: Canvas, rows: Rows) -> tuple[Axes, Axes, Axes]:
    from matplotlib.ticker import MaxNLocator

    loss = canvas.axes(0.85, 0.35, 4.0, 3.1)
    accuracy = canvas.axes(5.75, 0.35, 4.0, 3.1)
    rate = canvas.axes(0.85, 4.35, 8.9, 1.0)
    for axes, title in (
        (loss, "Loss (mean cross-entropy)"),
        (accuracy, "Accuracy (%)"),
        (rate, "Learning rate (last step of each epoch)"),
    ):
        axes.set(title=title, xlabel="epoch", axisbelow=True)
        axes.grid(visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(rows) == 1:
            axes.set_xlim(0.5, 1.5)
    loss.set_ylim(bottom=0, auto=None)
    rate.set_ylim(bottom=0, auto=None)
    accuracy.ticklabel_format(useOffset=False)
    return loss, accuracy, rate


def _line(axes: Axes, rows: Rows, key: str, **look: Any) -> None:  # noqa: ANN401
    factor = 100 if key.endswith("_accuracy") else 1
    points = [(row["epoch"], factor * row[key]) for row in rows if row.get(key) is not None]
    if not points:
        return
    if len(points) > 40:  # markers would cover the line
        look["marker"] = None
    axes.plot(*zip(*points, strict=True), linewidth=1.6, markersize=4.5, clip_on=False, **look)
    if not key.endswith("_accuracy"):
        axes.set_ylim(bottom=0, auto=None)
