"""Which pixels moved an answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mnist_ce.report.plots.canvas import GREY, Canvas, Heading, style
from mnist_ce.system.errors import sanitize, truncate_middle

__all__ = ["draw_attributions"]

_SIDE = 2.8  # inches: 12 pixels of the picture for each of the 28
_GAP = 0.35
_BELOW = 0.75


def draw_attributions(
    heading: Heading,
    pixels: npt.NDArray[np.uint8],
    attributions: Mapping[str, npt.NDArray[np.float32]],
) -> bytes:
    """Draw the picture beside what each of its pixels did for one or two classes.

    All panels share one diverging scale that is white at 0.

    Args:
        heading: The lines above the picture.
        pixels: What the network saw, uint8 [28, 28].
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
        panels[0].set_title("as the network sees it")
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
            "gradient × input: red ink speaks for it,\nblue against",
            color=GREY,
            va="baseline",
        )
        return canvas.png()
