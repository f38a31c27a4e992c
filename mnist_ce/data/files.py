"""Where a dataset's four files may lie: found, verified, and brought where torchvision reads them.

What verified means: MNIST's files have known MD5s, packed and unpacked. Of Fashion-MNIST and KMNIST
only the packed files' MD5s are known. Files unpacked from those get their MD5 written beside them
(`NAME.md5`, which `md5sum -c` reads). An unpacked file of theirs that comes without both is checked
by size, header and range of labels only; that is said, and its MD5 is written down, so that from
then on a change is noticed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from pathlib import Path

from mnist_ce.data.download import DownloadError, download_file
from mnist_ce.data.registry import Source, SourceFile, md5_of_bytes
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, check_writable, md5_of, one_line, write_atomically

__all__ = ["DatasetFiles"]

logger = logging.getLogger(__name__)


class DatasetFiles:
    """The places where a dataset's files may lie, and the ways to fill a gap."""

    def __init__(
        self,
        source: Source,
        data_dir: Path,
        *,
        mirrors: deque[str],
        stall_seconds: float,
    ) -> None:
        self.source = source
        self.data_dir = data_dir
        self.mirrors = mirrors
        self.stall_seconds = stall_seconds
        self.problems: dict[Path, str] = {}  # damaged files, each named once
        self.places = [
            source.raw_folder(data_dir),
            data_dir / source.name,
            data_dir,
            source.raw_folder(cache_dir()),
        ]

    def complete_root(self) -> Path:
        """Return a folder from which torchvision's class can read all four files, verified."""
        # Beside a `processed` folder of an old torchvision, its class would read that instead.
        roots = [
            root
            for root in (self.data_dir, cache_dir())
            if not _exists(self.source.raw_folder(root).parent / "processed")
        ]
        for root in roots:
            folder = self.source.raw_folder(root)
            if all(self._is_verified(folder / file.name, file) for file in self.source.files):
                return root
        refusals = []
        for root in roots:
            try:
                check_writable(root)  # it says more than folders that were made in it later
                for file in self.source.files:
                    self._fill(self.source.raw_folder(root), file)
            except OSError as error:
                refusals.append(f"{root}: {one_line(error)}")
            else:
                return root
        raise DataError(
            f"no folder to unpack {self.source.name}'s files in ({'; '.join(refusals)}): give a "
            "data folder that can be written"
        )

    def _fill(self, folder: Path, file: SourceFile) -> None:
        """Bring one file into a folder of torchvision's layout, verified.

        Raises:
            OSError: If the folder cannot be written.
        """
        path = folder / file.name
        if self._is_verified(path, file):
            return
        check_writable(folder)  # before a download, whose result would be lost
        content = self._find(file)
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and md5_of(path) != md5_of_bytes(content):
            # A link, because two processes may do this at the same time: the first to come keeps
            # the damaged file, and at no moment is there no file.
            with contextlib.suppress(FileExistsError):
                os.link(path, path.with_name(f"{path.name}.damaged"))
        write_atomically(path, content)
        if file.unpacked_md5 is None:
            write_atomically(_md5_path(path), f"{md5_of_bytes(content)}  {path.name}\n")

    def _find(self, file: SourceFile) -> bytes:
        """Return one file's unpacked content, from wherever a verified one is to be had."""
        for place in self.places:
            if self._is_verified(place / file.name, file):
                return (place / file.name).read_bytes()
        for place in self.places:
            if content := self._unpacked(place / f"{file.name}.gz", file):
                return content
        for place in self.places:
            if content := self._unverifiable(place / file.name, file):
                return content
        try:
            packed = download_file(
                f"{file.name}.gz",
                file.packed_md5,
                self.mirrors,
                max_bytes=file.max_packed_bytes,
                stall_seconds=self.stall_seconds,
            )
        except DownloadError as error:
            damaged = "".join(f"{path} {problem}. " for path, problem in self.problems.items())
            raise DownloadError(
                f"{damaged}There is no good {file.name}(.gz) of {self.source.name} in "
                f"{self.data_dir}, and it could not be downloaded ({error}). Put the four files "
                "there, or name another mirror."
            ) from error
        return file.unpack(packed, self.mirrors[0] + f"{file.name}.gz")

    def _is_verified(self, path: Path, file: SourceFile) -> bool:
        """Tell whether an unpacked file has the MD5 that it should have, as far as one is known."""
        expected = file.unpacked_md5
        if expected is None and path.parent != self.data_dir:
            expected = _recorded_md5(path)
        return expected is not None and self._has_md5(path, expected, file.num_bytes)

    def _unpacked(self, path: Path, file: SourceFile) -> bytes | None:
        """Return the content of a packed file, if it is there and verified."""
        if not self._has_md5(path, file.packed_md5, file.max_packed_bytes):
            return None
        logger.info(f"unpacking {path}")
        return file.unpack(path.read_bytes(), str(path))

    def _unverifiable(self, path: Path, file: SourceFile) -> bytes | None:
        """Return the content of an unpacked file whose MD5 nobody knows, if it looks right."""
        if (
            file.unpacked_md5 is not None
            or path.parent == self.data_dir  # it may be another dataset's
            or _recorded_md5(path) is not None  # it has been compared with that already
        ):
            return None
        try:
            if not path.is_file():
                return None
            with path.open("rb") as opened:
                content = opened.read(file.num_bytes + 1)
        except OSError as error:
            self._report(path, f"cannot be read ({one_line(error)})")
            return None
        if problem := file.problem_in(content):
            self._report(path, f"is damaged ({problem})")
            return None
        logger.warning(
            f"{path} was checked by its size, header and labels only, because the MD5 of the "
            f"unpacked {self.source.name} is not known; a {file.name}.gz beside it can be verified"
        )
        return content

    def _has_md5(self, path: Path, expected: str, max_bytes: int) -> bool:
        """Tell whether a file is there and has an MD5, and report it where it has another."""
        if path in self.problems:
            return False
        try:
            if not path.is_file():
                return False
            size = path.stat().st_size
            if size > max_bytes:  # it may be endless
                self._report(path, f"is damaged ({size:,} bytes, expected at most {max_bytes:,})")
                return False
            found = md5_of(path)
        except OSError as error:
            self._report(path, f"cannot be read ({one_line(error)})")
            return False
        if found == expected:
            return True
        if path.parent != self.data_dir:
            self._report(path, f"is damaged (MD5 {found}, expected {expected}; {size:,} bytes)")
        elif found not in self.source.foreign_md5s:
            self._report(
                path,
                f"is damaged or not of {self.source.name} (MD5 {found}, expected {expected}; "
                f"{size:,} bytes)",
            )
        return False

    def _report(self, path: Path, problem: str) -> None:
        if path not in self.problems:
            self.problems[path] = problem
            logger.warning(f"{path} {problem} and is not used")


def _md5_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.md5")


def _recorded_md5(path: Path) -> str | None:
    """Return the MD5 that was written beside a file when it was unpacked."""
    try:
        words = _md5_path(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return words[0] if words else None


def _exists(path: Path) -> bool:
    """Tell whether there is anything, as far as this process may look."""
    try:
        return path.exists()
    except OSError:
        return False
