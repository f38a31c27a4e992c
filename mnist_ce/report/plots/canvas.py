"""What all pictures share: size, type, colours, the heading, and how a figure becomes a PNG."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_ce.system.errors import sanitize, truncate_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DPI",
    "GREY",
    "Canvas",
    "Heading",
    "percent",
    "style",
]

DPI = 120
MARGIN = 0.35  # inches
HEADING_HEIGHT = 0.75  # inches

# Okabe and Ito's palette for all kinds of colour vision (2008), without its yellow, which is too
# faint on white: blue, vermilion, green, purple, orange, sky blue, black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#595959"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a run may be called a$b
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


@dataclass(frozen=True)
class Heading:
    """The two lines above a picture.

    Args:
        title: What it shows, of which run.
        subtitle: The dataset and the figures.
    """

    title: str
    subtitle: str


class Canvas:
    """A figure of a given size under a heading, to be drawn on and turned into a PNG.

    Args:
        heading: The lines above.
        width: Inches, of 120 pixels each.
        height: Inches, without the heading.
    """

    def __init__(self, heading: Heading, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height + HEADING_HEIGHT
        self.figure: Figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")
        characters = width * 9  # about as many of the title's letters as fit
        for text, size, weight, y in (
            (heading.title, 13, "bold", 0.36),
            (heading.subtitle, 10, "normal", 0.60),
        ):
            self.figure.text(
                MARGIN / self.width,
                1 - y / self.height,
                truncate_middle(sanitize(text), int(characters * 13 / size)),
                fontsize=size,
                fontweight=weight,
                color="black" if weight == "bold" else GREY,
                verticalalignment="baseline",
            )

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes, in inches from the left edge and from the heading down."""
        bottom = self.height - HEADING_HEIGHT - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A name may hold letters that no font here has; a box stands for them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw with this program's style, whatever the user's matplotlibrc says; undone on leaving."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def percent(fraction: float) -> str:
    """Return a probability in percent that never rounds to a certainty it is not."""
    if 0.9995 <= fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.1f} %"
