"""Plots of an explanation: the loss of one example, the attribution of an image's pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, GREY, Heading, drawing, short_names
from mnist_ce.system.text import sanitize, truncate_middle

_PANEL_SIDE = 2.8  # inches: 12 dots for each of the 28 pixels
_PANEL_GAP = 0.35


def draw_loss(class_names: Sequence[str], row: Mapping[str, Any]) -> bytes:
    """Draw -ln p of the target, the probabilities as bars, and p - y as arrows, as a PNG.

    `row` is of `explain_loss`. p - y is the gradient of the loss by the logits; gradient descent
    moves each logit by its opposite.
    """
    probabilities, target = row["probabilities"], row["target"]
    names, places = short_names(class_names), np.arange(len(class_names))
    is_target = places == target
    colours = np.where(is_target, COLOURS[1], COLOURS[0]).tolist()
    p = probabilities[target]
    heading = Heading(
        f"The loss of class {class_names[target]}: {row['loss']:.4f}",
        "-ln p of the right class; p of each class; the gradient by each logit, p - y",
    )
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
        for place, step in enumerate(is_target - np.array(probabilities)):
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


def draw_attributions(
    heading: Heading,
    pixels: npt.NDArray[np.uint8],
    attributions: Mapping[str, npt.NDArray[np.float32]],
) -> bytes:
    """Draw an image beside the attribution of each pixel to one or two classes, as a PNG.

    `pixels` is the network's input, uint8 [28, 28]; `attributions` are gradient × input by the
    panel's title, float32 [28, 28]. They share one diverging colour scale that is white at 0.
    """
    limit = max(*(float(np.abs(values).max()) for values in attributions.values()), 1e-9)
    pitch = _PANEL_SIDE + _PANEL_GAP
    lefts = [_PANEL_GAP + number * pitch for number in range(1 + len(attributions))]
    with drawing(heading, lefts[-1] + _PANEL_SIDE + _PANEL_GAP, 1.05 + _PANEL_SIDE) as canvas:
        panels = [canvas.axes(left, 0.3, _PANEL_SIDE, _PANEL_SIDE) for left in lefts]
        for panel in panels:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
        panels[0].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panels[0].set_title("network input")
        for panel, (title, values) in zip(panels[1:], attributions.items(), strict=True):
            image = panel.imshow(
                values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            panel.contour(pixels, levels=[float(pixels.max()) / 2], colors=GREY, linewidths=0.6)
            panel.set_title(truncate_middle(sanitize(title), 30))
        canvas.diverging_scale(image, _PANEL_GAP, 0.3 + _PANEL_SIDE + 0.22, _PANEL_SIDE)
        legend = "gradient × input: red is evidence\nfor the class, blue against it"
        canvas.note(2 * _PANEL_GAP + _PANEL_SIDE, 0.2, legend)
        return canvas.png()
