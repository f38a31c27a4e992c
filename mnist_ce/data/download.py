"""Downloads that end: every attempt is bounded in waiting time and size, and verified by digest."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from http.client import HTTPException
from urllib.parse import urlsplit

from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import one_line

__all__ = ["DownloadError", "download_file", "fetch", "mirror_url"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
# Fewer bytes than this within the waiting time count as none, so that a server that hands out a
# byte now and then has stalled, while the slowest modem has not.
_MOVING_BYTES = 1024


class DownloadError(DataError):
    """Something could not be downloaded. The message is the reason."""


def mirror_url(mirror: str) -> str:
    """Return a mirror's address with the slash that file names are appended to.

    Raises:
        UsageError: If it is not an http, https or file address.
    """
    if urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise UsageError(f"data.mirror: {mirror!r} must start with http://, https:// or file://")
    return mirror.rstrip("/") + "/"


def download_file(
    name: str,
    md5: str,
    mirrors: deque[str],
    *,
    max_bytes: int,
    stall_seconds: float,
) -> bytes:
    """Download a file from the first mirror that gives it, verified.

    Args:
        name: The file's name, appended to each mirror.
        md5: The digest it must have, in hex.
        mirrors: Addresses ending in a slash, tried in turn. One that fails goes to the end, so that
            the next file does not wait for it again.
        max_bytes: More than this is refused.
        stall_seconds: How long a mirror may send nothing.

    Raises:
        DownloadError: If no mirror gave it; the message has each mirror's reason.
    """
    reasons = []
    for _ in range(len(mirrors)):
        url = mirrors[0] + name
        logger.info(f"downloading {url}")
        try:
            content = fetch(url, max_bytes=max_bytes, stall_seconds=stall_seconds)
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
        else:
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found == md5:
                return content
            reasons.append(f"{url}: has MD5 {found}, expected {md5}")
        mirrors.rotate(-1)
    raise DownloadError("; ".join(reasons))


def fetch(url: str, *, max_bytes: int, stall_seconds: float) -> bytes:
    """Return what a URL holds, however slowly it comes, as long as it keeps coming.

    Raises:
        DownloadError: If nothing comes for `stall_seconds` (finding the server's address and
            connecting included), the answer is an error, ends early or exceeds `max_bytes`.
    """
    # A socket's own timeout covers neither the look-up of the server's name nor a second address
    # tried after the first, so a thread reads and this one watches the clock
    # (the socket's, longer, only ends a thread that has been given up).
    chunks: queue.Queue[bytes | Exception] = queue.Queue()
    given_up = threading.Event()
    threading.Thread(
        target=_read, args=(url, max_bytes, 2 * stall_seconds, chunks, given_up), daemon=True
    ).start()
    content = bytearray()
    received = 0  # bytes since `deadline` was set
    deadline = time.monotonic() + stall_seconds
    try:
        while True:
            try:
                chunk = chunks.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DownloadError(
                    f"stalled: nothing for {stall_seconds:g} s after {len(content):,} bytes"
                ) from None
            if isinstance(chunk, Exception):
                raise DownloadError(_reason(chunk)) from chunk
            if not chunk:
                return bytes(content)
            content += chunk
            received += len(chunk)
            if received >= _MOVING_BYTES:
                received, deadline = 0, time.monotonic() + stall_seconds
    finally:
        given_up.set()


def _read(
    url: str,
    max_bytes: int,
    timeout: float,
    chunks: queue.Queue[bytes | Exception],
    given_up: threading.Event,
) -> None:
    """Put what a URL holds into `chunks`, and at last an empty chunk or the reason for stopping."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mnist-ce"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length = response.headers.get("Content-Length")
            num_bytes = 0
            while chunk := response.read1(_CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise DownloadError(f"too long: more than {max_bytes:,} bytes")
                chunks.put(chunk)
                if given_up.is_set():
                    return
            if length is not None and num_bytes < int(length):
                raise DownloadError(f"cut short: {num_bytes:,} of {int(length):,} bytes")
        chunks.put(b"")
    except Exception as error:  # handed to the watching thread, which raises it
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        chunks.put(error)


def _reason(error: Exception) -> str:
    """Return in one line why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return one_line(error.reason)
    if isinstance(error, (DownloadError, OSError, HTTPException, ValueError)):
        return one_line(error)
    raise error  # a bug, not a mirror's fault
