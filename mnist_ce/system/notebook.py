"""What Python's users see: logs as lines; results in one line, and with a table in a notebook."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mnist_ce.system.distributed import is_main
from mnist_ce.system.text import sanitize

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("mnist_ce")

MAX_IMAGES = 24
MAX_SIDE_PX = 140  # of an image in a page


class Shown:
    """A result; what it shows are a headline, a table whose first row is its head, and images."""

    def headline(self) -> str:
        raise NotImplementedError

    def table(self) -> Sequence[Sequence[str]]:
        return ()

    def shown_images(self) -> Iterable[tuple[bytes | NDArray[Any], str]]:
        """Yield PNG files and images [h, w] with their captions."""
        return ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        from jinja2 import Environment, PackageLoader

        jinja = Environment(autoescape=True, loader=PackageLoader("mnist_ce.system", ""))
        images = [(png_url(image), caption) for image, caption in self.shown_images()]
        content = {"headline": self.headline(), "table": self.table(), "images": images}
        return jinja.get_template("result.html.j2").render(content)


def png_url(image: bytes | NDArray[Any]) -> str:
    """Return a PNG file, or an image [h, w], uint8 or in [0, 1], as a `data:` address."""
    from PIL import Image

    if not isinstance(image, bytes):
        levels = image if image.dtype == "uint8" else (image.astype("f4") * 255).clip(0, 255)
        small, buffer = Image.fromarray(levels.astype("uint8")), io.BytesIO()
        small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        small.save(buffer, "PNG", compress_level=1)
        image = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


class LinePrinter(logging.Handler):
    """Prints logs to Python's users; root handlers, where there are any, get the warnings alone."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning, root = record.levelno >= logging.WARNING, logging.getLogger()
        if is_warning and root.handlers:
            root.handle(record)
        elif is_main():
            stream = sys.stdout if is_notebook() else sys.stderr  # red in a notebook
            print("warning: " * is_warning + sanitize(record.getMessage()), file=stream, flush=True)


def is_notebook() -> bool:
    return "ipykernel" in sys.modules


@contextlib.contextmanager
def printed_by(handler: logging.Handler, *, propagate: bool = True) -> Iterator[None]:
    """Let a handler print what is logged at level INFO or above."""
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = propagate
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
