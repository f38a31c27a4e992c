"""Figures of a common style: size, fonts, colours, heading, and conversion to PNG.

matplotlib is imported when the first plot is drawn. Only its `Figure` and Agg canvas are used, so
that nothing global changes and no display is needed.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 120
MARGIN = 0.35  # inches
HEADING_HEIGHT = 0.75  # inches

# Okabe and Ito's palette for all kinds of colour vision (2008), without its yellow, which is too
# faint on white: blue, vermilion, green, purple, orange, sky blue, black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#595959"

_STYLE = {
    "text.parse_math": False,  # a run's name may be a$b
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "image.interpolation": "nearest",
    "image.cmap": "RdBu_r",  # for what is white at 0
    "grid.color": "#E0E0E0",
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), "black"),
}


class Canvas:
    """A figure below a title and a subtitle; width and height, without these, in inches."""

    def __init__(self, title: str, subtitle: str, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height + HEADING_HEIGHT
        self.figure: Figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")
        for text, size, per_inch, weight, colour, top in (
            (title, 13, 8.5, "bold", "black", 0.36),
            (subtitle, 10, 13.0, "normal", GREY, 0.60),
        ):
            limit = int((width - 2 * MARGIN) * per_inch)  # characters, about what fits
            shown = truncate_middle(sanitize(text), int(1.4 * limit))
            fitted = size * min(1, limit / max(len(shown), 1))
            x, y = MARGIN / self.width, 1 - top / self.height
            self.figure.text(x, y, shown, fontsize=fitted, fontweight=weight, color=colour)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes, in inches from the left edge and from the heading down."""
        bottom = self.height - HEADING_HEIGHT - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def note(self, left: float, bottom: float, text: str, **look: Any) -> None:  # noqa: ANN401
        """Write grey text, in inches from the left edge and from the bottom up."""
        self.figure.text(left / self.width, bottom / self.height, text, color=GREY, **look)

    def diverging_scale(
        self, image: AxesImage, left: float, top: float, width: float, extend: str = "neither"
    ) -> None:
        """Add a horizontal colour bar with ticks at 0 and at both limits of an image's colours."""
        scale = self.axes(left, top, width, 0.13)
        bar = self.figure.colorbar(image, cax=scale, orientation="horizontal", extend=extend)
        bar.outline.set_visible(False)
        limit = float(image.get_clim()[1] or 0.0)
        bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2g}", "0", f"{limit:.2g}"])

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A name may have letters that the font lacks; matplotlib draws a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


@contextlib.contextmanager
def drawing(title: str, subtitle: str, width: float, height: float) -> Iterator[Canvas]:
    """Open a canvas in this package's style, whatever matplotlibrc sets; restored on leaving."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield Canvas(title, subtitle, width, height)


def short_name(class_name: str) -> str:
    return truncate_middle(sanitize(class_name), 16)
