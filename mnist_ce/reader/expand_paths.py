"""Which pictures are meant by what a user wrote."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["STDIN", "SUFFIXES", "find_pictures"]

STDIN = "-"
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".ico"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".jfif", ".jpe", ".j2k", ".dib", ".apng"),
}


def find_pictures(patterns: Sequence[str]) -> Iterator[Path | None]:
    """Yield the files meant by paths, folders (their pictures, sorted), glob patterns, and `-`.

    What does not exist is yielded too, so that it gets its record of an error. None is stdin.
    """
    for pattern in patterns:
        if pattern == STDIN:
            yield None
            continue
        path = Path(pattern)
        try:
            yield from _meant_by(pattern, path) or [path]
        except (OSError, ValueError):  # a name too long, a folder that may not be read
            yield path


def _meant_by(pattern: str, path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if glob.has_magic(pattern) and not path.exists():
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns too
        return [Path(match) for match in matches if not Path(match).is_dir()]
    return [path]
