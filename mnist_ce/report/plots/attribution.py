"""Plot of the attribution of each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import GREY, Canvas, Heading, style
from mnist_ce.system.errors import sanitize, truncate_middle

_SIDE = 2.8  # inches: 12 dots for each of the 28 pixels
_GAP = 0.35
_BELOW = 0.75


def draw_attributions(
    heading: Heading,
    pixels: npt.NDArray[np.uint8],
    attributions: Mapping[str, npt.NDArray[np.float32]],
) -> bytes:
    """Draw an image beside the attribution of each pixel to one or two classes, as a PNG.

    The attributions share one diverging colour scale that is white at 0.

    Args:
        heading: The lines above the panels.
        pixels: The network's input, uint8 [28, 28].
        attributions: Gradient × input by the panel's title, float32 [28, 28].
    """
    limit = max(*(float(np.abs(values).max()) for values in attributions.values()), 1e-9)
    with style():
        num_panels = 1 + len(attributions)
        canvas = Canvas(heading, num_panels * (_SIDE + _GAP) + _GAP, 0.3 + _SIDE + _BELOW)
        panels = [
            canvas.axes(_GAP + number * (_SIDE + _GAP), 0.3, _SIDE, _SIDE)
            for number in range(num_panels)
        ]
        for panel in panels:
            panel.set_xticks([])
            panel.set_yticks([])
            for spine in panel.spines.values():
                spine.set_visible(True)
        panels[0].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panels[0].set_title("network input")
        for panel, (title, values) in zip(panels[1:], attributions.items(), strict=True):
            image = panel.imshow(
                values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            panel.contour(pixels, levels=[float(pixels.max()) / 2], colors=GREY, linewidths=0.6)
            panel.set_title(truncate_middle(sanitize(title), 30))
        top = 0.3 + _SIDE + 0.22
        bar = canvas.figure.colorbar(
            image, cax=canvas.axes(_GAP, top, _SIDE, 0.13), orientation="horizontal"
        )
        bar.outline.set_visible(False)
        bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2g}", "0", f"{limit:.2g}"])
        canvas.figure.text(
            (2 * _GAP + _SIDE) / canvas.width,
            0.2 / canvas.height,
            "gradient × input: red is evidence\nfor the class, blue against it",
            color=GREY,
            va="baseline",
        )
        return canvas.png()
