"""The loss of one example: -ln p with its point, the probabilities, and the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, GREY, Heading, drawing, short_names


def draw_loss(
    heading: Heading,
    class_names: Sequence[str],
    probabilities: npt.NDArray[np.float64],
    target: int,
) -> bytes:
    """Draw -ln p of the target, the probabilities as bars, and p - y as arrows, as a PNG.

    `probabilities` are float64 [classes], `target` is the index of the right class. p - y is the
    gradient of the loss by the logits; gradient descent moves each logit by its opposite.
    """
    names, places = short_names(class_names), np.arange(len(class_names))
    is_target = places == target
    colours = np.where(is_target, COLOURS[1], COLOURS[0]).tolist()
    p = float(probabilities[target])
    height = max(2.6, 0.24 * len(names))
    with drawing(heading, 10.6, height + 1.0) as canvas:
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
            axes.set_axisbelow(True)
            axes.grid(visible=True)
        return canvas.png()
