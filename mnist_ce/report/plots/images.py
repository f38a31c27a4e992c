"""Images of 28 × 28 pixels: mistakes, differences, attributions, first-layer weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, drawing, short_name
from mnist_ce.system.text import certainty, sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison
    from mnist_ce.evaluation.evaluate import EvaluationReport

_MAX_IMAGES = 24
_SCALE = 5  # pixels of the plot per pixel of an image
_COLUMNS, _ACROSS = 6, 214  # images in a row, and pixels from one to the next
_LINE = 19  # pixels from one line of text to the next

_UNITS = (9, 8)  # rows, columns
_UNIT_PITCH = 30  # weights from one unit to the next
_UNIT_SCALE = 3  # pixels of the plot per weight, so that no weight is blurred into the next

_PANEL_SIDE = 2.8  # inches: 12 dots for each of the 28 pixels
_PANEL_GAP = 0.35


def draw_mistakes(report: EvaluationReport, name: str) -> bytes:
    """Draw up to 24 wrongly classified images of a run, the most confident mistake first."""
    result = report.result
    num_wrong = result.num_examples - result.num_correct
    subtitle = (
        f"{report.dataset}, {report.split} split: {num_wrong:,} of {result.num_examples:,} images; "
        "#n is the n-th image, from 0"
    )
    return _draw_images(f"{name}: the most confident mistakes", subtitle, [report], report.mistakes)


def draw_differences(comparison: Comparison) -> bytes:
    """Draw up to 24 images that models predict differently, in the order of `differing`."""
    reports, num_all = comparison.reports, len(comparison.differing)
    runs = [truncate_middle(sanitize(report.trained.label), 30) for report in reports]
    title = f"{num_all:,} images on which the predictions differ"
    title += f", {_MAX_IMAGES} shown" if num_all > _MAX_IMAGES else ""
    subtitle = " · ".join(f"{chr(65 + number)} {run}" for number, run in enumerate(runs))
    return _draw_images(title, subtitle, reports, comparison.differing)


def _draw_images(
    title: str, subtitle: str, reports: Sequence[EvaluationReport], indices: Sequence[int]
) -> bytes:
    """Draw images dark on white, each above its class and, by model, the prediction.

    That is green where it is right, and red where it is wrong.
    """
    indices = indices[:_MAX_IMAGES]
    images = reports[0].images.numpy()[list(indices)]
    enlarged = (255 - images).repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)
    framed = np.pad(enlarged, ((0, 0), (1, 1), (1, 1)), constant_values=200)
    down = framed.shape[1] + _LINE * (len(reports) + 2)  # from one row of images to the next
    mosaic = _mosaic(framed, _COLUMNS, down, _ACROSS, 255)
    height, width = (size / DPI for size in mosaic.shape)
    with drawing(title, subtitle, width + 0.35, height + 0.15) as canvas:
        axes = canvas.axes(0.35, 0.1, width, height)
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, aspect="auto")
        axes.set_axis_off()
        if not indices:
            axes.text(0, 30, f"None of {reports[0].result.num_examples:,} images.", color=GREY)
        for place, index in enumerate(indices):
            readings = [report.reading(index) for report in reports]
            lines = [(f"#{index}  true: {short_name(readings[0].label)}", GREY)]
            for number, one in enumerate(readings):
                letter = f"{chr(65 + number)}: " if len(reports) > 1 else "predicted "
                colour = COLOURS[2] if one.prediction == one.label else COLOURS[1]
                text = f"{letter}{short_name(one.prediction)}  {certainty(one.probability)}"
                lines.append((text, colour))
            x, bottom = place % _COLUMNS * _ACROSS, place // _COLUMNS * down + framed.shape[1]
            for number, (text, colour) in enumerate(lines, start=1):
                axes.text(x, bottom + _LINE * number, text, fontsize=9, color=colour)
        return canvas.png()


def _mosaic(
    images: npt.NDArray[Any], columns: int, down: int, across: int, background: float
) -> npt.NDArray[Any]:
    """Return images [n, height, width] in rows, each at the top left of a cell [down, across].

    One array, since one `imshow` is far faster than one per image.
    """
    num_images, height, width = images.shape
    rows = max(-(-num_images // columns), 1)
    gaps = (0, rows * columns - num_images), (0, down - height), (0, across - width)
    cells = np.pad(images, gaps, constant_values=background)
    return cells.reshape(rows, columns, down, across).swapaxes(1, 2).reshape(rows * down, -1)


def strongest_units(
    weight: npt.NDArray[np.float32], max_units: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the units of the largest norm, and the limit of a colour scale for their weights.

    `weight` is [units, inputs]. The limit is the 99.8 % quantile of the absolute weights, since a
    few extreme ones would make all others pale.
    """
    order = np.argsort(-np.linalg.norm(weight, axis=1), kind="stable")
    strongest = weight[order[:max_units]]
    return strongest, max(float(np.quantile(np.abs(strongest).astype(np.float64), 0.998)), 1e-9)


def draw_weights(title: str, subtitle: str, weight: npt.NDArray[np.float32]) -> bytes:
    """Draw up to 72 units of the first layer, `weight` [units, 784], the largest norm first.

    All share one diverging colour scale that is white at 0.
    """
    max_rows, columns = _UNITS
    units, limit = strongest_units(weight, max_rows * columns)
    mosaic = _mosaic(units.reshape(-1, 28, 28), columns, _UNIT_PITCH, _UNIT_PITCH, np.nan)
    mosaic = mosaic[: 28 - _UNIT_PITCH, : 28 - _UNIT_PITCH]  # without the last gaps
    height, width = (size * _UNIT_SCALE / DPI for size in mosaic.shape)
    with drawing(title, subtitle, width + 0.7, height + 0.95) as canvas:
        axes = canvas.axes(0.35, 0.1, width, height)
        image = axes.imshow(mosaic, vmin=-limit, vmax=limit, aspect="auto")
        axes.set_axis_off()
        canvas.diverging_scale(image, 0.35, height + 0.3, 2.4, extend="both")
        legend = f"{len(units)} of {len(weight)} units, largest first.\n"
        legend += "Ink on red adds, on blue subtracts."
        canvas.note(3.15, 0.33, legend, fontsize=9)
        return canvas.png()


def draw_attributions(
    title: str,
    subtitle: str,
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
    width = lefts[-1] + _PANEL_SIDE + _PANEL_GAP
    with drawing(title, subtitle, width, 1.05 + _PANEL_SIDE) as canvas:
        panels = [canvas.axes(left, 0.3, _PANEL_SIDE, _PANEL_SIDE) for left in lefts]
        for panel in panels:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
        panels[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
        panels[0].set_title("network input")
        for panel, (name, values) in zip(panels[1:], attributions.items(), strict=True):
            image = panel.imshow(values, vmin=-limit, vmax=limit)
            panel.contour(pixels, levels=[float(pixels.max()) / 2], colors=GREY, linewidths=0.6)
            panel.set_title(truncate_middle(sanitize(name), 30))
        canvas.diverging_scale(image, _PANEL_GAP, 0.3 + _PANEL_SIDE + 0.22, _PANEL_SIDE)
        legend = "gradient × input: red is evidence\nfor the class, blue against it"
        canvas.note(2 * _PANEL_GAP + _PANEL_SIDE, 0.2, legend)
        return canvas.png()
