"""Loss, accuracy and learning rate by epoch, of one run or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_ce.report.plots.canvas import COLOURS, Canvas, Heading, style
from mnist_ce.system.errors import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves", "draw_overlaid_curves"]

Rows = Sequence[Mapping[str, Any]]

# Train results are taken while the weights still change, each image before its own step.
_SPLITS = (
    ("train", "train, while learning", {"color": COLOURS[0], "linestyle": "--", "marker": "o"}),
    ("validation", "validation", {"color": COLOURS[2], "linestyle": "-.", "marker": "^"}),
    ("test", "test", {"color": COLOURS[1], "linestyle": "-", "marker": "s"}),
)
_MARKERS = "osv^DPX"
_MANY_EPOCHS = 40
_HEIGHT = 6.05  # inches


def draw_curves(heading: Heading, rows: Rows) -> bytes:
    """Draw one run: loss and accuracy of each split, and the learning rate.

    Args:
        heading: The lines above the picture.
        rows: What `metrics.csv` holds; None where nothing was measured.
    """
    with style():
        canvas = Canvas(heading, 10.0, _HEIGHT)
        loss, accuracy, rate = _panels(canvas, rows)
        for split, label, look in _SPLITS:
            for axes, quantity, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
                _line(axes, rows, f"{split}_{quantity}", factor, label=label, **look)
        for axes in (loss, accuracy):
            if axes.lines:
                axes.legend()
        _line(rate, rows, "learning_rate", 1, color=COLOURS[6], marker="o")
        return canvas.png()


def draw_overlaid_curves(heading: Heading, runs: Sequence[tuple[str, Rows]]) -> bytes:
    """Draw several runs over each other: test solid, train dotted, a colour and marker per run.

    Args:
        heading: The lines above the picture.
        runs: The name of each run and what its `metrics.csv` holds.
    """
    with style():
        legend_height = 0.35 + 0.22 * len(runs)
        canvas = Canvas(heading, 10.0, _HEIGHT + legend_height)
        longest = max((rows for _, rows in runs), key=len, default=[])
        loss, accuracy, rate = _panels(canvas, longest)
        for number, (name, rows) in enumerate(runs):
            # Seven colours times seven markers, none of the pairs twice.
            turn, place = divmod(number, len(COLOURS))
            look: dict[str, Any] = {
                "color": COLOURS[place],
                "marker": _MARKERS[(place + turn) % len(_MARKERS)],
            }
            for axes, quantity, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
                _line(axes, rows, f"train_{quantity}", factor, linestyle=":", **look)
                _line(axes, rows, f"test_{quantity}", factor, **look)
            _line(
                rate, rows, "learning_rate", 1, label=truncate_middle(sanitize(name), 100), **look
            )
        canvas.figure.legend(
            *rate.get_legend_handles_labels(),
            loc="lower left",
            bbox_to_anchor=(0.06, 0.0),
            title="solid: test · dotted: train, while learning",
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
        axes.set_title(title)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(rows) == 1:
            axes.set_xlim(0.5, 1.5)
    loss.set_ylim(bottom=0, auto=None)
    rate.set_ylim(bottom=0, auto=None)
    accuracy.ticklabel_format(useOffset=False)
    return loss, accuracy, rate


def _line(axes: Axes, rows: Rows, key: str, factor: float, **look: Any) -> None:  # noqa: ANN401
    """Draw what was measured of one column; a curve of many epochs needs no markers."""
    points = [(row["epoch"], factor * row[key]) for row in rows if row.get(key) is not None]
    if not points:
        return
    if len(points) > _MANY_EPOCHS:
        look = {**look, "marker": None}
    axes.plot(*zip(*points, strict=True), linewidth=1.6, markersize=4.5, clip_on=False, **look)
    if key.endswith(("_loss", "learning_rate")):
        axes.set_ylim(bottom=0, auto=None)
