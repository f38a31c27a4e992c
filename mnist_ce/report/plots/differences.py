"""Images on which networks differ, with the prediction of each."""

from __future__ import annotations

import numpy as np

from mnist_ce.evaluation.comparison import MultipleComparison
from mnist_ce.report.plots.canvas import COLOURS, DPI, GREY, Heading, drawing, percent, short_names
from mnist_ce.system.errors import sanitize, truncate_middle

_COLUMNS, _MAX_IMAGES = 6, 24
_SCALE = 5  # pixels of the plot per pixel of an image
_SIDE = 28 * _SCALE
_ACROSS, _LINE = 192, 19  # pixels from one image to the next, and from one line of text


def draw_differences(compared: MultipleComparison) -> bytes:
    """Draw up to 24 images on which not all predictions are equal, as a PNG.

    They are in the order of `differing`. Below each stand the truth and, by network, the prediction
    with its probability, in green where it is right and in red where it is wrong.
    """
    first, letters = compared.reports[0], [chr(65 + n) for n in range(len(compared.reports))]
    names, labels = short_names(first.class_names), first.result.labels.tolist()
    probabilities = [
        report.trained.objective.probabilities(report.result.logits / report.trained.temperature)
        for report in compared.reports
    ]
    shown = compared.differing[:_MAX_IMAGES]
    down = _SIDE + (len(letters) + 2) * _LINE
    rows = max(-(-len(shown) // _COLUMNS), 1)
    mosaic = np.full((rows * down, _COLUMNS * _ACROSS), 255, dtype=np.uint8)
    corners = [(n // _COLUMNS * down, n % _COLUMNS * _ACROSS) for n in range(len(shown))]
    for index, (top, left) in zip(shown, corners, strict=True):
        image = 255 - first.images[index].numpy()
        enlarged = np.kron(image, np.ones((_SCALE, _SCALE), np.uint8))
        mosaic[top : top + _SIDE, left : left + _SIDE] = enlarged
    runs = [truncate_middle(sanitize(report.trained.label), 30) for report in compared.reports]
    heading = Heading(
        f"{len(compared.differing):,} images on which the predictions differ"
        + (f", {len(shown)} shown" if len(shown) < len(compared.differing) else ""),
        " · ".join(f"{letter} {run}" for letter, run in zip(letters, runs, strict=True)),
    )
    height, width = (size / DPI for size in mosaic.shape)
    with drawing(heading, width + 0.35, height + 0.15) as canvas:
        axes = canvas.axes(0.35, 0.1, width, height)
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for index, (top, left) in zip(shown, corners, strict=True):
            lines = [(f"true: {names[labels[index]]}  #{index}", GREY)]
            for number, letter in enumerate(letters):
                prediction = int(compared.predictions[index, number])
                probability = percent(float(probabilities[number][index, prediction]))
                colour = COLOURS[2] if prediction == labels[index] else COLOURS[1]
                lines.append((f"{letter}: {names[prediction]}  {probability}", colour))
            for line, (text, colour) in enumerate(lines, start=1):
                axes.text(left, top + _SIDE + line * _LINE, text, fontsize=9, color=colour)
        return canvas.png()
