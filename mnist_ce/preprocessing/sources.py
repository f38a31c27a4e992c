"""Which pictures are meant by what a user wrote."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["STDIN", "find_pictures"]

STDIN = "-"
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".ico"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".tga"),
}


def find_pictures(patterns: Sequence[str]) -> Iterator[Path | None]:
    """Yield the files meant by paths, folders (their pictures, sorted), glob patterns, and `-`.

    What does not exist is yielded too, so that it gets its record of an error. None is stdin.
    """
    for pattern in patterns:
        path = Path(pattern)
        if pattern == STDIN:
            yield None
        elif path.is_dir():
            pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            yield from pictures or [path]
        elif glob.has_magic(pattern) and not path.exists():
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns too
            yield from [Path(m) for m in matches if not Path(m).is_dir()] or [path]
        else:
            yield path
