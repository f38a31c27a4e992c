"""Any image of at most 16 MB is read or refused within 10 s of CPU and 1.5 GB."""

from __future__ import annotations

import io
import os
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mnist_ce.reader.pool import PreprocessedImage, PreprocessOptions, PreprocessPool

SIDE = 1000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="measures processes"),
]
Line = list[tuple[float, float]]


def lines(spacing: int, slope: float, width: int) -> list[Line]:
    return [
        [(0, start), (SIDE, start + slope * SIDE)] for start in range(-5 * SIDE, 2 * SIDE, spacing)
    ]


def stairs(spacing: int, slope: float, width: int) -> list[Line]:
    step = max(4, int(20 * abs(slope)))
    places = range(0, SIDE, step)
    return [
        [p for x in places for p in ((x, top - x), (x + step, top - x))]
        for top in range(0, 2 * SIDE, max(spacing, 2 * width))
    ]


def ticks(spacing: int, slope: float, width: int) -> list[Line]:
    height = 4 * spacing
    columns = range(5, SIDE, spacing)
    return [
        [(x, y), (x + slope * height, y + height)]
        for y in range(5, SIDE, height + 6)
        for x in columns
    ]


def rings(spacing: int, slope: float, width: int) -> list[Line]:
    angles = np.linspace(0, 6.2, 60)
    radii = range(spacing, SIDE, spacing)
    return [[(500 + r * np.cos(a), 500 + r * np.sin(a)) for a in angles] for r in radii]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pool() -> Iterator[PreprocessPool]:
    with closing(PreprocessPool(1)) as pool:
        yield pool


def read(pool: PreprocessPool, content: bytes, *, multi: bool) -> PreprocessedImage:
    """Read an image and measure its process."""
    assert len(content) < 16e6

    def measured() -> tuple[int, float, int]:
        usage = pool.submit(resource.getrusage, resource.RUSAGE_SELF).result()
        seconds = usage.ru_utime + usage.ru_stime
        # Not `ru_maxrss`, which begins with that of the process that started this one.
        status = pool.submit(Path("/proc/self/status").read_text).result()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        return pool.submit(os.getpid).result(), seconds, peak

    before = measured()
    (result,) = pool.preprocess(content, PreprocessOptions(multi=multi)).result()
    after = measured()
    if before[0] == after[0]:  # else the process has ended at its limit
        assert after[1] - before[1] < 10
        assert after[2] < 1.5e6  # KiB
    return result


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.sampled_from([lines, stairs, ticks, rings]), min_size=1, max_size=2),
    spacing=st.integers(6, 60),
    slope=st.floats(-1.5, 1.5),
    width=st.integers(2, 6),
    noise=st.sampled_from([0.0, 0.0, 0.002, 0.02, 0.1]),
    dark=st.booleans(),
    multi=st.booleans(),
)
@example([lines], 10, -0.99, 4, 0.0, True, True)
@example([stairs], 60, 1.0, 4, 0.0, True, True)
@example([ticks], 10, 0.33, 3, 0.0, True, False)
@example([], 10, 0.0, 1, 0.02, True, True)
def test_hatching_and_noise(
    pool: PreprocessPool,
    kinds: list[Callable[[int, float, int], list[Line]]],
    spacing: int,
    slope: float,
    width: int,
    noise: float,
    dark: bool,
    multi: bool,
) -> None:
    page = Image.new("L", (SIDE, SIDE), 255)
    for kind in kinds:
        for line in kind(spacing, slope, width):
            ImageDraw.Draw(page).line(line, fill=0, width=width)
    inked = np.random.default_rng(spacing).random((SIDE, SIDE)) < noise
    pixels = np.where(inked, 0, np.asarray(page)).astype(np.uint8)
    result = read(pool, encoded(Image.fromarray(pixels if dark else 255 - pixels)), multi=multi)
    assert result.error is None  # the reader's own bound was enough


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG, JPEG = (encoded(Image.new("L", (100, 100), 200), form) for form in ("PNG", "JPEG"))
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
HEADERS = {
    "chunks of a PNG": PNG[:33] + chunk(b"abCd") * 1_300_000 + PNG[33:],
    "profiles of a PNG": PNG[:33] + PROFILE * 10_000 + PNG[33:],
    "texts of a PNG": PNG[:33] + TEXT * 10_000 + PNG[33:],
    "markers of a JPEG": JPEG[:2] + b"\xff\xe5\0\2" * 3_900_000 + JPEG[2:],
    "comment of a PNM": b"P5 #" + b"a" * 15_900_000 + b"\n9 9 255\n" + bytes(81),
    "text like SVG": b"<!DOCTYPE svg" * 1_200_000,
    "text like a table": b"a " * 7_900_000,
    "text like base64": b"a \n" * 5_000_000,
    "comments of a GIF": b"GIF89a" + bytes(7) + b"!\xfe\x01a\0" * 3_100_000,
    "tags of a TIFF": b"II*\0\x08\0\0\0\xff\xff" + b"\0\2\3\0\xff\xff\0\0\x10\0\0\0" * 65_535,
}


@pytest.mark.parametrize("case", HEADERS)
def test_long_headers(pool: PreprocessPool, case: str) -> None:
    read(pool, HEADERS[case], multi=False)


OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"method": 0},
}
LARGE = {
    "colours": ("PNG", "RGB", 10_900),
    "transparency": ("PNG", "LA", 10_900),
    "16 bits": ("PNG", "I;16", 10_900),
    "floats": ("TIFF", "F", 10_900),
    "bilevel": ("TIFF", "1", 10_900),
    "WebP": ("WEBP", "RGB", 7_000),
    "JPEG": ("JPEG", "RGB", 14_000),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_images_are_read(pool: PreprocessPool, case: str) -> None:
    form, mode, side = LARGE[case]
    options = OPTIONS.get(form, {})
    content = encoded(Image.new(mode, (side, side)), form, **options)
    assert read(pool, content, multi=False).error is None
