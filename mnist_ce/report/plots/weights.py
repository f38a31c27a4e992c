"""What the first layer looks for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import DPI, GREY, Canvas, Heading, style

__all__ = ["draw_weights"]

_COLUMNS = 12
_ROWS = 6
_SCALE = 3  # pixels of the picture per weight, so that no weight is blurred into the next


def draw_weights(heading: Heading, weight: npt.NDArray[np.float32]) -> bytes:
    """Draw the receptive fields of up to 72 first-layer units, the largest norm first.

    All share one diverging scale that is white at 0.

    Args:
        heading: The lines above the picture.
        weight: float32 [units, 784].
    """
    norms = np.linalg.norm(weight, axis=1)
    order = np.argsort(-norms, kind="stable")[: _COLUMNS * _ROWS]
    num_rows = -(-len(order) // _COLUMNS)
    pitch = 30  # a field and the gap to the next
    mosaic = np.full((num_rows * pitch - 2, _COLUMNS * pitch - 2), np.nan)
    for place, unit in enumerate(order):
        row, column = divmod(place, _COLUMNS)
        top, left = row * pitch, column * pitch
        mosaic[top : top + 28, left : left + 28] = weight[unit].reshape(28, 28)
    # A few extreme weights would make all others pale.
    limit = max(float(np.nanquantile(np.abs(mosaic), 0.998)), 1e-9)
    with style():
        height, width = (size * _SCALE / DPI for size in mosaic.shape)
        canvas = Canvas(heading, width + 0.7, height + 0.95)
        axes = canvas.axes(0.35, 0.1, width, height)
        image = axes.imshow(
            mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
        )
        axes.set_axis_off()
        scale = canvas.axes(0.35, height + 0.3, 3.0, 0.13)
        bar = canvas.figure.colorbar(image, cax=scale, orientation="horizontal", extend="both")
        bar.outline.set_visible(False)
        bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2g}", "0", f"{limit:.2g}"])
        canvas.figure.text(
            3.85 / canvas.width,
            0.36 / canvas.height,
            f"{len(order)} of {len(weight)} units, largest first. "
            "Ink on red adds, ink on blue subtracts.",
            color=GREY,
            va="baseline",
        )
        return canvas.png()
