"""Results that show themselves: in one line as text, with a table and images in a notebook."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

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
