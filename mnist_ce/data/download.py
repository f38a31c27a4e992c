"""Downloads with a limit on waiting time and size, verified by MD5."""

from __future__ import annotations

import logging
import threading
import time
import urllib.error
import urllib.request
from collections import deque

from mnist_ce.system.errors import DataError
from mnist_ce.system.files import md5_of
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

_MOVING_BYTES = 1024  # a server that sends fewer within the waiting time has stalled


class DownloadError(DataError):
    """A file could not be downloaded."""


def download_file(
    name: str, md5: str, mirrors: deque[str], *, max_bytes: int, stall_seconds: float
) -> bytes:
    """Download a file from the first mirror, an address ending in a slash, that has this MD5.

    A mirror that fails goes to the end of `mirrors`, so that the next file does not wait for it
    again. Where none has it, a `DownloadError` gives each mirror's reason.
    """
    reasons = []
    for _ in range(len(mirrors)):
        url = mirrors[0] + name
        logger.info(f"downloading {url}")
        try:
            content = fetch(url, max_bytes=max_bytes, stall_seconds=stall_seconds)
            if (found := md5_of(content)) == md5:
                return content
            reasons.append(f"{url}: has MD5 {found}, expected {md5}")
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
        mirrors.rotate(-1)
    raise DownloadError("; ".join(reasons))


def fetch(url: str, *, max_bytes: int, stall_seconds: float) -> bytes:
    """Return the content of a URL, however slowly it comes, as long as it keeps coming.

    A `DownloadError` if nothing comes for `stall_seconds` (finding the server and connecting
    included), the server reports an error, or the content ends early or exceeds `max_bytes`.
    """
    content = bytearray()
    failures: list[Exception] = []
    done, given_up = threading.Event(), threading.Event()

    def read() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "mnist-ce"})
            with urllib.request.urlopen(request, timeout=2 * stall_seconds) as response:
                length = response.headers.get("Content-Length")
                while (chunk := response.read1(1 << 16)) and not given_up.is_set():
                    content.extend(chunk)
                    if len(content) > max_bytes:
                        raise DownloadError(f"too long: more than {max_bytes:,} bytes")
                if length is not None and len(content) < int(length):
                    raise DownloadError(f"cut short: {len(content):,} of {int(length):,} bytes")
        except Exception as error:  # raised below, by the watching thread
            failures.append(error)
        finally:
            done.set()

    # A socket's own timeout covers neither the look-up of the server's name nor a second address
    # tried after the first, so one thread reads and this one watches the clock. (The socket's
    # timeout, twice as long, only ends a thread that has been given up.)
    threading.Thread(target=read, daemon=True).start()
    num_received, moved_at = 0, time.monotonic()
    while not done.wait(stall_seconds / 20):
        if len(content) >= num_received + _MOVING_BYTES:
            num_received, moved_at = len(content), time.monotonic()
        elif time.monotonic() > moved_at + stall_seconds:
            given_up.set()
            waited = f"{stall_seconds:g} s after {len(content):,} bytes"
            raise DownloadError(f"stalled: nothing for {waited}")
    if failures:
        if isinstance(failures[0], urllib.error.HTTPError):
            failures[0].close()
        cause = getattr(failures[0], "reason", None)  # of a URLError, whose own text is "<…>"
        reason = cause if isinstance(cause, Exception) else failures[0]
        raise DownloadError(one_line(reason)) from failures[0]
    return bytes(content)
