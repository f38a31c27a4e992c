"""Plots of an evaluation: confusion matrix, reliability diagram, the loss of one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_ce.evaluation.metrics import Bools, Floats, expected_calibration_error, wilson_interval
from mnist_ce.report.plots.canvas import COLOURS, GREY, drawing, short_name
from mnist_ce.system.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mnist_ce.evaluation.evaluate import EvaluationReport

_NUM_BINS = 15


def draw_confusion_matrix(report: EvaluationReport, name: str) -> bytes:
    """Draw the confusion matrix of a run, coloured by the errors, as a PNG.

    An error's colour is its fraction of the images of its true class. The diagonal, which would
    drown all errors, is grey, and its fraction stands at the end of the row.
    """
    counts = np.asarray(report.confusion, dtype=np.int64)  # [true class, predicted class]
    num_classes, names = len(counts), list(map(short_name, report.class_names))
    fractions = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    errors = np.where(np.eye(num_classes, dtype=bool), np.nan, fractions)
    highest = max(float(np.nanmax(errors)), 1e-9)
    longest, cell = max(map(len, names)), 0.5 if num_classes > 4 else 1.1
    left, side = 0.95 + 0.075 * longest, cell * num_classes
    is_slanted = longest * 0.11 > cell
    below = 0.75 + (0.065 * longest if is_slanted else 0)
    from matplotlib import colormaps

    title, width = f"{name}: confusion matrix", max(left + side + 1.1, 6.2)
    with drawing(title, _result_line(report), width, side + 0.3 + below) as canvas:
        axes = canvas.axes(left, 0.3, side, side)
        colours = colormaps["Oranges"].with_extremes(bad="#E8ECEF")  # the diagonal
        axes.imshow(errors, cmap=colours, vmin=0, vmax=highest)
        for (row, column), count in np.ndenumerate(counts):
            is_dark = errors[row, column] > 0.6 * highest  # False on the diagonal, which is NaN
            colour = GREY if row == column else "white" if is_dark else "black"
            if count:
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour)
        end = num_classes - 0.3
        for row, fraction in enumerate(np.diag(fractions)):
            axes.text(end, row, percent(fraction), va="center")
        axes.annotate("correct", (end, -0.5), (0, 5), textcoords="offset points", color=GREY)
        axes.set_xticks(range(num_classes), names)
        if is_slanted:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.set(xlabel="prediction", ylabel="truth")
        for axis in (axes.xaxis, axes.yaxis):  # for white lines between the cells
            axis.set_ticks(np.arange(-0.5, num_classes).tolist(), minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        return canvas.png()


def draw_reliability(report: EvaluationReport, name: str | None = None) -> bytes:
    """Draw accuracy against confidence, and below the accuracy under rejection, as a PNG.

    Both are drawn with the model's temperature, accuracy against confidence without it as well. The
    title is the run's `name`, or else the model's label.
    """
    title = f"{name or report.trained.label}: reliability diagram"
    temperatures = dict.fromkeys((1.0, report.trained.temperature))
    series = {value: report.result.confidences(value) for value in temperatures}
    looks: list[dict[str, Any]] = [
        {"color": COLOURS[1], "marker": "s", "linestyle": "--"},
        {"color": COLOURS[0], "marker": "o", "linestyle": "-"},
    ]
    with drawing(title, _result_line(report), 6.2, 7.9) as canvas:
        axes = canvas.axes(0.95, 0.8, 4.9, 3.7)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfectly calibrated")
        for (temperature, predictions), look in zip(series.items(), looks, strict=False):
            label = "as trained" if temperature == 1 else f"temperature {temperature:.3g}"
            error = percent(expected_calibration_error(*predictions), 2)
            label += f": expected calibration error {error}"
            _draw_bins(axes, *predictions, label=label, **look)
        ticks = np.linspace(0, 1, 6)
        labels = [percent(tick, 0) for tick in ticks]
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="accuracy (bars: 95 % interval)")
        axes.set_xlabel("probability of the predicted class")
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.grid(visible=True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
        calibrated, colour = series[report.trained.temperature], looks[len(series) - 1]["color"]
        _draw_rejection(canvas.axes(0.95, 5.3, 4.9, 1.9), *calibrated, colour)
        return canvas.png()


def _result_line(report: EvaluationReport) -> str:
    result = report.result
    return (
        f"{report.dataset}, {report.split} split: {result.num_correct:,} of "
        f"{result.num_examples:,} correct ({percent(result.accuracy, 2)}), loss {result.loss:.4f}"
    )


def _draw_bins(axes: Axes, confidence: Floats, correct: Bools, **look: Any) -> None:  # noqa: ANN401
    # Of equal width, a dot's area its fraction of the predictions: most of the bins of equal mass,
    # by which the calibration error is computed, would lie on top of each other at 100 %.
    bins = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    groups = [bins == number for number in np.unique(bins)]
    x = np.array([confidence[group].mean() for group in groups])
    y = np.array([correct[group].mean() for group in groups])
    spans = [wilson_interval(int(correct[group].sum()), int(group.sum())) for group in groups]
    errors = np.abs(np.array(spans).T - y)  # [2, bins]
    areas = 8 + 400 * np.array([group.mean() for group in groups])  # in points²
    marker = look.pop("marker")
    axes.errorbar(x, y, yerr=errors, linewidth=1, **look)
    axes.scatter(x, y, areas, color=look["color"], marker=marker, alpha=0.7, linewidths=0, zorder=3)


def _draw_rejection(axes: Axes, confidence: Floats, correct: Bools, colour: str) -> None:
    """Draw the accuracy of the rest when the least probable predictions are rejected."""
    order = np.argsort(confidence, kind="stable")
    num_left = np.arange(len(order), 0, -1)  # when 0, 1, … are rejected
    accuracy = correct[order][::-1].cumsum()[::-1] / num_left
    # To twice the fraction at which the last error is rejected; to half of all at the most.
    last_error = np.flatnonzero(~correct[order])[-1:].sum() / len(order)
    limit = min(max(2 * float(last_error), 0.02), 0.5)
    axes.plot(1 - num_left / len(order), accuracy, color=colour, linewidth=1.6)
    fractions = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    for x in (0, *(fraction for fraction in fractions if limit / 8 <= fraction <= limit / 2)):
        y = float(accuracy[int(x * len(order))])
        axes.plot(x, y, "o", color=colour, markersize=4, clip_on=False)
        axes.annotate(percent(y, 2), (x, y), (5, -11), textcoords="offset points", fontsize=9)
    axes.set(xlim=(0, limit), ylabel="accuracy of the rest")
    axes.set_xlabel("share of predictions rejected, the least probable first")
    axes.margins(y=0.2)
    axes.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.3g} %")
    axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g} %")
    axes.grid(visible=True)


def draw_loss(class_names: Sequence[str], row: Mapping[str, Any]) -> bytes:
    """Draw -ln p of the target, the probabilities as bars, and p - y as arrows, as a PNG.

    `row` is of `explain_loss`. p - y is the gradient of the loss by the logits; gradient descent
    moves each logit by its opposite.
    """
    target, probabilities = row["target"], np.array(row["probabilities"])  # float64 [classes]
    names, places = list(map(short_name, class_names)), np.arange(len(class_names))
    is_target = places == target
    colours = np.where(is_target, COLOURS[1], COLOURS[0]).tolist()
    p = float(probabilities[target])
    title = f"The loss of class {class_names[target]}: {row['loss']:.4f}"
    subtitle = "-ln p of the right class; p of each class; the gradient by each logit, p - y"
    height = max(2.6, 0.24 * len(names))
    with drawing(title, subtitle, 10.6, height + 1.0) as canvas:
        loss, bars, arrows = (canvas.axes(x, 0.4, 2.6, height) for x in (0.7, 4.35, 7.7))
        x = np.linspace(0.001, 1, 500)
        loss.plot(x, -np.log(x), color=GREY)
        # Beyond the curve the point stands at the edge.
        y = min(-np.log(max(p, 1e-300)), 6.9)
        loss.plot(p, y, "o", color=COLOURS[1], clip_on=False)
        near = {"textcoords": "offset points", "color": COLOURS[1]}
        loss.annotate(f"p = {p:.4g}", (p, y), (8, 4 if y < 6 else -14), **near)  # type: ignore[arg-type]
        guess = 1 / len(names)
        loss.plot(guess, -np.log(guess), "o", color=GREY, markersize=4)
        loss.annotate("guessing", (guess, -np.log(guess)), (6, 3), textcoords="offset points")
        loss.set(title="-ln p", xlabel="p of the right class", xlim=(0, 1), ylim=(0, 7))
        bars.barh(places, probabilities, color=colours)
        bars.set(title="p, the softmax", xlim=(0, 1), xlabel="probability")
        for place, step in enumerate(is_target - probabilities):
            head = "-|>" if abs(step) > 0.03 else "-"  # a head would be longer than the step
            look = {"arrowstyle": head, "color": colours[place], "shrinkA": 0, "shrinkB": 0}
            arrows.annotate("", (step, place), (0, place), arrowprops=look)
        arrows.axvline(0, color=GREY, linewidth=0.8)
        arrows.set(title="descent, -(p - y)", xlim=(-1.05, 1.05), xlabel="down · up: each logit")
        for axes in (bars, arrows):
            axes.set(ylim=(len(names) - 0.4, -0.6))
            axes.set_yticks(places, names)
        for axes in (loss, bars, arrows):
            axes.grid(visible=True)
        return canvas.png()
