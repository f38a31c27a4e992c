"""Paths, atomic writes, digests and well-known folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import stat
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import platformdirs

from mnist_ce.system.errors import UsageError

OPEN_PIPE = r"/(dev|proc/self)/fd/\d+|/dev/stdin"  # as the shell passes <(command)


def expand_home(text: str) -> str:
    """Replace the `~` of a path, also in `csv:~/FILE`; a UsageError if there is no such user."""
    prefix = re.match(r"([\w+]{2,}:(///?)?)?", text)
    path = text[prefix.end() :] if prefix else text
    home = os.path.expanduser(path)  # noqa: PTH111 - `Path` raises RuntimeError
    if path.startswith("~") and home == path and not os.path.lexists(path):
        raise UsageError(f"{text}: there is no user {path[1:].partition('/')[0]!r}")
    return text.removesuffix(path) + home


def local_path(text: str) -> str:
    """Return a path, or a dataset such as `csv:PATH`, without `~`; a UsageError for an address."""
    if address := re.search(r"(?:^|:)(\w{2,}://.*)", text):
        raise UsageError(f"{address[1]} is an address: download it first")
    return expand_home(text)


def as_path(path: str | Path) -> Path:
    return Path(local_path(str(path)))


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that at every moment it has either its old or its new content, whole.

    The content (text as UTF-8) goes to a temporary file in the same folder, which is flushed to the
    disk and renamed. After an OSError, whose `filename` is the path, no temporary file remains.
    Of a symbolic link the target is written; a device or pipe is written into, as by the shell.
    """
    content = content.encode() if isinstance(content, str) else content
    target = path.resolve() if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(content)
            return
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        flush_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def open_regular(path: Path, max_bytes: int = 1 << 30) -> BinaryIO:
    """Open a file, or a pipe that the shell gave to this process; an OSError for any other kind."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file: BinaryIO = os.fdopen(os.open(path, flags), "rb")
    mode = os.fstat(file.fileno()).st_mode
    problem = "" if stat.S_ISREG(mode) else "is not a regular file"
    if stat.S_ISFIFO(mode) and re.fullmatch(OPEN_PIPE, str(path)):
        os.set_blocking(file.fileno(), True)
        with file:
            content = file.read(max_bytes + 1)
        file, problem = io.BytesIO(content), "" if content else "is empty, or was read before"
    if not problem and file.seek(0, os.SEEK_END) > max_bytes:
        problem = f"has more than {max_bytes:,} bytes"
    if problem:
        file.close()
        raise OSError(errno.EINVAL, problem, str(path))
    file.seek(0)
    return file


def read_regular(path: Path, max_bytes: int) -> bytes:
    with open_regular(path, max_bytes) as file:
        return file.read()


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of `write_atomically` that killed processes left in a folder."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def flush_folder(folder: Path) -> None:
    """Flush what a folder lists to the disk; Windows, CIFS and FUSE cannot, and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder cannot be made or written; without a write bit even root cannot."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is not a folder")
    if not existing.stat().st_mode & 0o222 or not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} cannot be written")


def md5_of(content: bytes) -> str:
    """Return the MD5 of some bytes as 32 hex digits (an identity check, not a security one)."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def cache_dir() -> Path:
    return platformdirs.user_cache_path("mnist-ce", appauthor=False)


def repository_root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def shipped_dir(name: str) -> Path:
    """Return the folder of the shipped `configs`, `examples`, or weights `mnist` or `world`."""
    places = (repository_root() / place / name for place in ("mnist_ce/shipped", "", "checkpoints"))
    return next(place for place in places if place.is_dir())


def find_example(path: Path) -> Path:
    """Return the shipped image or folder for a path in `examples` that does not exist, else it."""
    is_example = path.parts[:1] == ("examples",) and not path.exists()
    return shipped_dir("examples").joinpath(*path.parts[1:]) if is_example else path


def version() -> str:
    """Return the program's version, or `unknown` in a checkout that is not installed."""
    try:
        return metadata.version("mnist-ce")
    except metadata.PackageNotFoundError:
        return "unknown"
