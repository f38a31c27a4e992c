"""The files of MNIST, Fashion-MNIST and KMNIST: found, verified, downloaded, read by torchvision.

torchvision reads unpacked files in `<root>/<class>/raw/` and verifies nothing. So verified files
are brought into that layout, in the user's cache where the data directory cannot be written, and
what torchvision has read is compared. Of Fashion-MNIST and KMNIST only the MD5s of the packed files
are known: these are kept beside the unpacked ones, and an unpacked file without its `.gz` is
checked by size, header and range of labels, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mnist_ce.data.download import DownloadError, download_file, mirror_url
from mnist_ce.data.registry import (
    CLASS_NAMES,
    DIGESTS,
    TORCHVISION_CLASSES,
    DataFile,
    files_of,
    torchvision_class,
)
from mnist_ce.data.splits import Dataset, Split
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import cache_dir, check_writable, md5_of, write_atomically
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

STALL_TIMEOUT_S = 20.0
FALLBACK_TIMEOUT_S = 8.0  # all mirrors together, where another dataset can take the place
MAX_ENTRIES = 10_000  # of a folder that is searched for files of other names
MAX_LISTED = 8  # of them, in a message


class DatasetFiles:
    """The four files of `mnist`, `fashion-mnist` or `kmnist`, wherever they are.

    Each is looked for, unpacked or as `.gz`, in `<data_dir>/<class>/raw`, `<data_dir>/<dataset>`,
    `data_dir` itself and the user's cache; then, under any name, by its size and MD5, in these
    folders and one level below; and then downloaded, from `mirror` alone if given. A damaged file
    is named in a warning and not used; one that lies where the good one goes is kept as
    `NAME.damaged`. With `fail_fast`, silent mirrors are given up within seconds.
    """

    def __init__(
        self, name: str, data_dir: Path, mirror: str | None = None, *, fail_fast: bool = False
    ) -> None:
        mirrors = None if mirror is None else [mirror_url(mirror)]
        self.name, self.data_dir = name, data_dir
        self.torchvision_class, self.files = torchvision_class(name), files_of(name)
        # All datasets use the same file names: what lies in `data_dir` may be of another one.
        known = [file for other in TORCHVISION_CLASSES for file in files_of(other)]
        self.known_md5s = {md5 for file in known for md5 in (file.packed_md5, file.unpacked_md5)}
        self.mirrors = deque(mirrors or self.torchvision_class.mirrors)
        self.timeout_s = FALLBACK_TIMEOUT_S / len(self.mirrors) if fail_fast else STALL_TIMEOUT_S
        self.raw = Path(TORCHVISION_CLASSES[name], "raw")
        self.folders = (data_dir / self.raw, data_dir / name, data_dir, cache_dir() / self.raw)
        self.problems: dict[Path, str] = {}  # of damaged files
        self.contents: dict[str, bytes] = {}  # of the unpacked files that are found or downloaded

    def load(self) -> Dataset:
        """Return the dataset as torchvision reads it.

        A `DataError` if a file is neither found nor downloaded, or there is no folder to unpack in.
        """
        # Where an old torchvision left a folder `processed`, its class reads that instead.
        old, folders = self.raw.with_name("processed"), (self.data_dir, cache_dir())
        roots = [root for root in folders if not os.access(root / old, os.F_OK)]
        for root in roots:
            known = DIGESTS.get(self.name)
            if known and (dataset := self._read(root, known)):
                return dataset
        for file in self.files:
            if content := self._find(file):
                self.contents[file.name] = content
        for path, problem in self.problems.items():
            logger.warning(f"{path} {problem} and is not used")
        refusals = []
        for root in roots:
            try:
                for file in self.files:
                    self._fill(root, file)
            except OSError as error:
                refusals.append(f"{root}: {one_line(error)}")
                continue
            contents = (self.contents[file.name] for file in self.files)
            if dataset := self._read(root, hashlib.sha256(b"".join(contents)).hexdigest()):
                return dataset
            refusals.append(f"{root}: a file changed while it was read")
        raise DataError(
            f"no folder to unpack {self.name}'s files in ({'; '.join(refusals)}): give a "
            "data folder that can be written"
        )

    def _read(self, root: Path, digest: str | None) -> Dataset | None:
        """Return what torchvision reads below `root`, if it has this digest."""
        # torchvision must not read a file of another size, which may be endless.
        if not all(_fits(root / self.raw / file.name, file) for file in self.files):
            return None
        sets = [self.torchvision_class(root, train=train) for train in (True, False)]
        splits = [Split(part.data, part.targets) for part in sets]
        dataset = Dataset(self.name, splits[0], splits[1], CLASS_NAMES[self.name])
        return dataset if dataset.digest == digest else None

    def _find(self, file: DataFile) -> bytes | None:
        """Return the unpacked content of a file, from the first place that has it."""
        for path in self._places(file):
            if content := self._read_verified(path, file):
                return content
        if file.unpacked_md5 is not None:
            return None
        for path in self._unverifiable_places(file):
            if (content := self._content(path, file.max_packed_bytes)) is None:
                continue
            if problem := file.problem_in(content):
                self.problems[path] = f"is damaged ({problem})"
                continue
            logger.warning(
                f"{path} was checked by its size, header and labels only, because the MD5 of the "
                f"unpacked {self.name} is not known; a {file.name}.gz beside it can be verified"
            )
            return content
        return None

    def _places(self, file: DataFile) -> Iterator[Path]:
        """Yield where a file may lie: by its name, then by its size under any name."""
        names = (file.name, f"{file.name}.gz")
        by_name = [folder / name for folder in self.folders for name in names]
        yield from by_name
        for folder in self.folders:
            # As 7-Zip and Kaggle unpack it: `train-images.idx3-ubyte`, or in a folder of its name.
            paths = (path for entry in _entries(folder) for path in (entry, *_entries(entry)))
            for path in itertools.islice(paths, MAX_ENTRIES):
                if path not in by_name and _unpacked_size(path) == file.num_bytes:
                    yield path

    def _unverifiable_places(self, file: DataFile) -> Iterator[Path]:
        """Yield where an unpacked file may lie whose MD5 is not known, in any usual spelling."""
        for folder in self.folders:
            if folder != self.data_dir:  # there it may be of another dataset
                entries = _entries(folder)
                yield from (p for p in entries if p.name.lower().replace(".", "-") == file.name)

    def _read_verified(self, path: Path, file: DataFile) -> bytes | None:
        """Return the unpacked content of a path, packed or not, if it has the MD5 of `file`."""
        if (content := self._content(path, file.max_packed_bytes)) is None:
            return None
        if (md5 := md5_of(content)) == file.unpacked_md5:
            return content
        with contextlib.suppress(DataError):
            unpacked = file.unpack(content, str(path))
            # Other software may have packed it again.
            if md5 == file.packed_md5 or md5_of(unpacked) == file.unpacked_md5:
                logger.info(f"unpacking {path}")
                return unpacked
        md5s = {file.name: file.unpacked_md5, f"{file.name}.gz": file.packed_md5}
        is_flat = path.parent == self.data_dir
        if (expected := md5s.get(path.name)) and not (is_flat and md5 in self.known_md5s):
            other = f" or not of {self.name}" if is_flat else ""
            what = f"(MD5 {md5}, expected {expected}; {len(content):,} bytes)"
            self.problems[path] = f"is damaged{other} {what}"
        return None

    def _content(self, path: Path, max_bytes: int) -> bytes | None:
        try:
            if path in self.problems or not path.is_file():
                return None
            if (size := path.stat().st_size) <= max_bytes:
                return path.read_bytes()
            self.problems[path] = f"is damaged ({size:,} bytes, expected at most {max_bytes:,})"
        except OSError as error:
            self.problems[path] = f"cannot be read ({one_line(error)})"
        return None

    def _fill(self, root: Path, file: DataFile) -> None:
        """Bring a file to where torchvision reads it; download it where it was not found."""
        path, content = root / self.raw / file.name, self.contents.get(file.name)
        if content is not None and _holds(path, content):
            return
        for folder in (root, path.parent):
            check_writable(folder)  # before a download, whose result would be lost
        if content is None:
            packed = self._download(file)
            content = file.unpack(packed, self.mirrors[0] + file.name)
            self.contents[file.name] = content
            if file.unpacked_md5 is None:
                _replace(path.with_name(f"{file.name}.gz"), packed)
        _replace(path, content)

    def _download(self, file: DataFile) -> bytes:
        """Return the packed file."""
        name, limit = f"{file.name}.gz", file.max_packed_bytes
        try:
            return download_file(
                name, file.packed_md5, self.mirrors, max_bytes=limit, stall_seconds=self.timeout_s
            )
        except DownloadError as error:
            damaged = "".join(f"{path} {problem}. " for path, problem in self.problems.items())
            raise DownloadError(
                f"{damaged}{self._inventory()}, and {name} could not be downloaded ({error}). Put "
                "the missing files there, or name another mirror."
            ) from error

    def _inventory(self) -> str:
        """Return which of the four files are missing, which are there, and what else is."""
        names = [file.name for file in self.files]
        lists = {
            "missing": [name for name in names if name not in self.contents],
            "found": [name for name in names if name in self.contents],
            "other files there": [p.name for p in _entries(self.data_dir) if p.name not in names],
        }
        shown = (
            f"{key}: {', '.join(names[:MAX_LISTED])}{', …' if len(names) > MAX_LISTED else ''}"
            for key, names in lists.items()
            if names
        )
        return f"{self.data_dir} does not hold all of {self.name} ({'; '.join(shown)})"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _replace(path: Path, content: bytes) -> None:
    """Write a file, and keep another one that lies there as `NAME.damaged`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not _holds(path, content):
        # A link, because two processes may do this at the same time: the first one keeps the
        # damaged file, and at no moment is there no file.
        with contextlib.suppress(FileExistsError):
            os.link(path, path.with_name(f"{path.name}.damaged"))
    write_atomically(path, content)


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name; nothing where it is not a folder."""
    try:
        return sorted(itertools.islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return []


def _unpacked_size(path: Path) -> int | None:
    """Return the size of a file, of a `.gz` as its last four bytes give it; None: no file."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return path.stat().st_size
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    except OSError:
        return None


def _fits(path: Path, file: DataFile) -> bool:
    try:
        if _unpacked_size(path) != file.num_bytes:
            return False
        with path.open("rb") as opened:
            return opened.read(len(file.header)) == file.header
    except OSError:
        return False
