"""Files that are either whole or not there: atomic writes, locks, digests, well-known folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import platformdirs

__all__ = [
    "cache_dir",
    "check_writable",
    "flush_folder",
    "lock_folder",
    "md5_of",
    "one_line",
    "remove_unfinished",
    "repository_root",
    "shipped_dir",
    "temporary_beside",
    "version",
    "write_atomically",
]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".tmp"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


def one_line(error: BaseException) -> str:
    """Return the reason an exception gives, in one line and without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that at every moment the old or the new content is there, whole.

    The content goes to a temporary file in the same folder, is flushed to the disk, takes the
    place of the old file in one rename, and the folder itself is flushed.

    Args:
        path: The file to write.
        content: Bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: If the folder is missing or full or may not be written. The old file is intact
            and no temporary file remains.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """Return a new hidden path for what will take this place once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")


def remove_unfinished(folder: Path) -> None:
    """Remove the files in a folder that processes killed while writing left behind."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            path.unlink()


def flush_folder(folder: Path) -> None:
    """Flush a folder's own entry to the disk where the system can (Windows cannot)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that ask for it in this way.

    The system lets go of the lock when the process ends, however that happens, and it stays with
    the folder when that is renamed. Where there are no such locks (Windows, some network file
    systems) nothing is held.

    Raises:
        BlockingIOError: If another process holds it.
        OSError: If the folder cannot be opened.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder could not be made or written, without trying it.

    A folder without write permission for anybody is taken at its word, by root too, whom the system
    would let write: someone has marked it as not to be changed.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is not a folder")
    if not existing.stat().st_mode & 0o222 or not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} cannot be written")


def md5_of(*parts: bytes | memoryview) -> str:
    """Return the MD5 of some bytes as 32 hex digits (an identity check, not a security one)."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Return the user's cache folder for this program (it may not exist yet)."""
    return platformdirs.user_cache_path("mnist-ce", appauthor=False)


def repository_root() -> Path:
    """Return the folder above the package: the checkout's root when run from a checkout."""
    return Path(__file__).resolve().parent.parent.parent


def shipped_dir(name: str) -> Path:
    """Return a folder that ships with the program: `configs` or `pretrained`.

    In an installed wheel these lie inside the package; in a checkout, at the top level (`configs/`
    and `checkpoints/pretrained/`).
    """
    installed = Path(__file__).resolve().parent.parent / "shipped" / name
    if installed.is_dir():
        return installed
    places = {"configs": "configs", "pretrained": "checkpoints/pretrained"}
    return repository_root() / places[name]


def version() -> str:
    """Return the program's version, or `unknown` in a checkout that is not installed."""
    try:
        return metadata.version("mnist-ce")
    except metadata.PackageNotFoundError:
        return "unknown"
