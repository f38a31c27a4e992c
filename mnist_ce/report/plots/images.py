"""Images of 28 × 28 pixels: mistakes, differences between models, first-layer weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mnist_ce.evaluation.metrics import most_confident_mistakes
from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, Heading, drawing, percent, short_names
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison
    from mnist_ce.evaluation.evaluate import EvaluationReport

_MAX_IMAGES = 24
_SCALE = 5  # pixels of the plot per pixel of an image
_ACROSS = 192  # pixels from one image to the next

_UNITS = (9, 8)  # rows, columns
_UNIT_PITCH = 30  # weights from one unit to the next
_UNIT_SCALE = 3  # pixels of the plot per weight, so that no weight is blurred into the next


def draw_mistakes(report: EvaluationReport, name: str) -> bytes:
    """Draw up to 24 wrongly classified images of a run, the most confident mistake first.

    Images with bright ink on black are drawn dark on white.
    """
    result, names = report.result, short_names(report.class_names)
    num_wrong = result.num_examples - result.num_correct
    heading = Heading(
        f"{name}: the most confident mistakes",
        f"{report.dataset}, {report.split} split: {num_wrong:,} of {result.num_examples:,} images; "
        "#n is the n-th image, from 0",
    )
    labels, predictions = result.labels.numpy(), result.predictions.numpy()
    probabilities = report.probabilities.numpy()
    indices = most_confident_mistakes(labels, predictions, probabilities)[:_MAX_IMAGES]
    captions = []
    for index in indices:
        true, predicted = (names[classes[index]] for classes in (labels, predictions))
        # In float32 the probability of a mistake may round to 1, but it is below.
        confidence = percent(min(float(probabilities[index, predictions[index]]), 1 - 1e-9))
        caption = [(18, f"true: {true}", COLOURS[0], 9), (37, f"pred: {predicted}", COLOURS[1], 9)]
        captions.append([*caption, (56, f"{confidence}  #{index}", GREY, 8)])
    images, nothing = report.images.numpy()[indices], f"No mistakes among {len(labels):,} images."
    return _draw_captioned(heading, images, captions, (228, 4), frame=1, nothing=nothing)


def draw_differences(comparison: Comparison) -> bytes:
    """Draw up to 24 images on which not all predictions of models are equal, as a PNG.

    They are in the order of `differing`. Below each stand the truth and, by model, the prediction
    with its probability, in green where it is right and in red where it is wrong.
    """
    reports = comparison.reports
    letters = [chr(65 + number) for number in range(len(reports))]
    names, labels = short_names(reports[0].class_names), comparison.labels.tolist()
    indices = comparison.differing[:_MAX_IMAGES]
    captions = []
    for index in indices:
        caption = [(19, f"true: {names[labels[index]]}  #{index}", GREY, 9)]
        for line, (letter, report) in enumerate(zip(letters, reports, strict=True), start=2):
            prediction = int(report.result.predictions[index])
            probability = percent(float(report.probabilities[index, prediction]))
            colour = COLOURS[2] if prediction == labels[index] else COLOURS[1]
            caption.append((19 * line, f"{letter}: {names[prediction]}  {probability}", colour, 9))
        captions.append(caption)
    runs = [truncate_middle(sanitize(report.trained.label), 30) for report in reports]
    num_all = len(comparison.differing)
    heading = Heading(
        f"{num_all:,} images on which the predictions differ"
        + (f", {len(indices)} shown" if len(indices) < num_all else ""),
        " · ".join(f"{letter} {run}" for letter, run in zip(letters, runs, strict=True)),
    )
    down = 28 * _SCALE + 19 * (len(letters) + 2)
    return _draw_captioned(heading, reports[0].images.numpy()[indices], captions, (down, 6))


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
    units, limit = strongest_units(weight, max_rows * columns)
    rows = -(-len(units) // columns)
    mosaic = np.full((rows * _UNIT_PITCH - 2, columns * _UNIT_PITCH - 2), np.nan)
    for place, unit in enumerate(units):
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
        legend = f"{len(units)} of {len(weight)} units, largest first.\n"
        legend += "Ink on red adds, on blue subtracts."
        canvas.note(3.15, 0.33, legend, fontsize=9)
        return canvas.png()
