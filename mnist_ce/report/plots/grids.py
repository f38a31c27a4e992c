"""Images of 28 × 28 pixels: mistakes, differences, first-layer weights, pixel attributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mnist_ce.evaluation.metrics import most_confident_mistakes
from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, Heading, drawing, percent, short_names
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import MultipleComparison

_MAX_IMAGES = 24
_SCALE = 5  # pixels of the plot per pixel of an image
_ACROSS = 192  # pixels from one image to the next

_UNITS = (9, 8)  # rows, columns
_UNIT_PITCH = 30  # weights from one unit to the next
_UNIT_SCALE = 3  # pixels of the plot per weight, so that no weight is blurred into the next

_PANEL_SIDE = 2.8  # inches: 12 dots for each of the 28 pixels
_PANEL_GAP = 0.35


def draw_mistakes(
    heading: Heading,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> bytes:
    """Draw up to 24 wrongly classified images, the most confident mistake first.

    `images` [n, 28, 28] have bright ink on black and are drawn dark on white; `labels` and
    `predictions` are [n], `probabilities` [n, classes].
    """
    names = short_names(class_names)
    shown = most_confident_mistakes(labels, predictions, probabilities)[:_MAX_IMAGES]
    captions = []
    for index in shown:
        true, predicted = (names[classes[index]] for classes in (labels, predictions))
        # In float32 the probability of a mistake may round to 1, but it is below.
        confident = percent(min(float(probabilities[index, predictions[index]]), 1 - 1e-9))
        caption = [(18, f"true: {true}", COLOURS[0], 9), (37, f"pred: {predicted}", COLOURS[1], 9)]
        captions.append([*caption, (56, f"{confident}  #{index}", GREY, 8)])
    nothing = f"No mistakes among {len(labels):,} images."
    return _draw_captioned(heading, images[shown], captions, (228, 4), frame=1, nothing=nothing)


def draw_differences(compared: MultipleComparison) -> bytes:
    """Draw up to 24 images on which not all predictions of networks are equal, as a PNG.

    They are in the order of `differing`. Below each stand the truth and, by network, the prediction
    with its probability, in green where it is right and in red where it is wrong.
    """
    first, letters = compared.reports[0], [chr(65 + n) for n in range(len(compared.reports))]
    names, labels = short_names(first.class_names), first.result.labels.tolist()
    shown = compared.differing[:_MAX_IMAGES]
    captions = []
    for index in shown:
        caption = [(19, f"true: {names[labels[index]]}  #{index}", GREY, 9)]
        for number, letter in enumerate(letters):
            prediction = int(compared.predictions[index, number])
            probability = percent(float(compared.reports[number].probabilities[index, prediction]))
            colour = COLOURS[2] if prediction == labels[index] else COLOURS[1]
            text = f"{letter}: {names[prediction]}  {probability}"
            caption.append((19 * (number + 2), text, colour, 9))
        captions.append(caption)
    runs = [truncate_middle(sanitize(report.trained.label), 30) for report in compared.reports]
    heading = Heading(
        f"{len(compared.differing):,} images on which the predictions differ"
        + (f", {len(shown)} shown" if len(shown) < len(compared.differing) else ""),
        " · ".join(f"{letter} {run}" for letter, run in zip(letters, runs, strict=True)),
    )
    down = 28 * _SCALE + 19 * (len(letters) + 2)
    return _draw_captioned(heading, first.images[shown].numpy(), captions, (down, 6))


def _draw_captioned(
    heading: Heading,
    images: npt.NDArray[np.uint8],
    captions: Sequence[Sequence[tuple[int, str, str, int]]],
    layout: tuple[int, int],
    *,
    frame: int = 0,
    nothing: str = "",
) -> bytes:
    """Draw images [n, 28, 28] dark on white, each with its caption.

    The lines of a caption are given by their pixels below the image, text, colour and font size;
    `layout` is the pixels from one row of images to the next and the number of columns.
    """
    down, columns = layout
    side = 28 * _SCALE + 2 * frame
    # One array for all images, since one `imshow` is far faster than 24.
    mosaic = np.full((max(-(-len(images) // columns), 1) * down, columns * _ACROSS), 255, np.uint8)
    corners = [(n // columns * down, n % columns * _ACROSS) for n in range(len(images))]
    for image, (top, left) in zip(images, corners, strict=True):
        enlarged = np.kron(255 - image, np.ones((_SCALE, _SCALE), np.uint8))
        framed = np.pad(enlarged, frame, constant_values=200)
        mosaic[top : top + side, left : left + side] = framed
    height, width = (size / DPI for size in mosaic.shape)
    with drawing(heading, width + 0.35, height + 0.15) as canvas:
        axes = canvas.axes(0.35, 0.1, width, height)
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        if not captions:
            axes.text(0, 30, nothing, color=GREY)
        for caption, (top, left) in zip(captions, corners, strict=True):
            for y, text, colour, size in caption:
                axes.text(left, top + side + y, text, fontsize=size, color=colour)
        return canvas.png()


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


def draw_weights(heading: Heading, weight: npt.NDArray[np.float32]) -> bytes:
    """Draw up to 72 units of the first layer, `weight` [units, 784], the largest norm first.

    All share one diverging colour scale that is white at 0.
    """
    max_rows, columns = _UNITS
    shown, limit = strongest_units(weight, max_rows * columns)
    rows = -(-len(shown) // columns)
    mosaic = np.full((rows * _UNIT_PITCH - 2, columns * _UNIT_PITCH - 2), np.nan)
    for place, unit in enumerate(shown):
        top, left = place // columns * _UNIT_PITCH, place % columns * _UNIT_PITCH
        mosaic[top : top + 28, left : left + 28] = unit.reshape(28, 28)
    height, width = (size * _UNIT_SCALE / DPI for size in mosaic.shape)
    with drawing(heading, width + 0.7, height + 0.95) as canvas:
        axes = canvas.axes(0.35, 0.1, width, height)
        image = axes.imshow(
            mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
        )
        axes.set_axis_off()
        canvas.diverging_scale(image, 0.35, height + 0.3, 2.4, extend="both")
        legend = f"{len(shown)} of {len(weight)} units, largest first.\n"
        legend += "Ink on red adds, on blue subtracts."
        canvas.figure.text(
            3.15 / canvas.width, 0.33 / canvas.height, legend, color=GREY, fontsize=9
        )
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
        canvas.figure.text(
            (2 * _PANEL_GAP + _PANEL_SIDE) / canvas.width,
            0.2 / canvas.height,
            "gradient × input: red is evidence\nfor the class, blue against it",
            color=GREY,
            va="baseline",
        )
        return canvas.png()
