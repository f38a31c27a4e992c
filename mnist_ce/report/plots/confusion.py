"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnist_ce.report.plots.canvas import GREY, Canvas, Heading, percent, style
from mnist_ce.system.errors import sanitize, truncate_middle

__all__ = ["draw_confusion_matrix"]

_RIGHT = "#E8ECEF"


def draw_confusion_matrix(
    heading: Heading, confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> bytes:
    """Draw a confusion matrix in which the errors are what is seen.

    An error's colour is its share of the images of its true class; the right answers, which would
    drown all others, are grey, and their share stands at the end of the row.

    Args:
        heading: The lines above the picture.
        confusion: Counts [classes][classes]: row = true class, column = answer.
        class_names: What the classes are called.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    num_classes = len(counts)
    names = [truncate_middle(sanitize(name), 16) for name in class_names]
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    errors = np.where(np.eye(num_classes, dtype=bool), np.nan, shares)
    highest = max(float(np.nanmax(errors)), 1e-9)

    with style():
        from matplotlib import colormaps
        from matplotlib.ticker import FuncFormatter

        longest = max(map(len, names))
        left = 0.95 + 0.075 * longest
        cell = 0.62 if num_classes > 4 else 1.1
        side = cell * num_classes
        slanted = longest * 0.11 > cell
        below = 0.75 + (0.065 * longest if slanted else 0)
        canvas = Canvas(heading, max(left + side + 2.3, 6.2), side + 0.3 + below)
        axes = canvas.axes(left, 0.3, side, side)
        colours = colormaps["Oranges"].with_extremes(bad=_RIGHT)
        image = axes.imshow(errors, cmap=colours, vmin=0, vmax=highest)
        for row in range(num_classes):
            for column in range(num_classes):
                count = counts[row, column]
                if not count:
                    continue
                dark = row != column and errors[row, column] > 0.6 * highest
                axes.text(
                    column,
                    row,
                    f"{count}",
                    ha="center",
                    va="center",
                    color="white" if dark else GREY if row == column else "black",
                )
            axes.text(num_classes - 0.3, row, percent(shares[row, row]), va="center")
        axes.annotate(
            "right", (num_classes - 0.3, -0.5), (0, 5), textcoords="offset points", color=GREY
        )
        axes.set_xticks(range(num_classes), names)
        if slanted:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
        # White lines between the cells.
        axes.set_xticks(np.arange(-0.5, num_classes), minor=True)
        axes.set_yticks(np.arange(-0.5, num_classes), minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)

        scale = canvas.axes(left + side + 1.15, 0.3 + 0.1 * side, 0.16, 0.8 * side)
        bar = canvas.figure.colorbar(
            image, cax=scale, format=FuncFormatter(lambda share, _: f"{100 * share:.3g} %")
        )
        bar.outline.set_visible(False)
        bar.set_label("errors, share of the true class")
        return canvas.png()
