"""The files of MNIST, Fashion-MNIST and KMNIST: found, verified, downloaded, read by torchvision.

torchvision reads unpacked files in `<root>/<class>/raw/` and verifies nothing. So files are brought
into that layout, in the user's cache where the data directory cannot be written, and the MD5 of
what torchvision has read is compared. Of Fashion-MNIST and KMNIST only the packed files' MD5s are
known, so those of the unpacked files are written beside them (`NAME.md5`, which `md5sum -c` reads);
an unpacked file without any is checked by size, header and range of labels, with a warning.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from pathlib import Path

from torch import Tensor

from mnist_ce.data.download import DownloadError, download_file, mirror_url
from mnist_ce.data.idx import idx_parts
from mnist_ce.data.registry import TORCHVISION_CLASSES, DataFile, files_of, torchvision_class
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
        self, dataset: str, data_dir: Path, mirror: str | None = None, *, fail_fast: bool = False
    ) -> None:
        given = None if mirror is None else [mirror_url(mirror)]
        self.dataset, self.data_dir = dataset, data_dir
        self.torchvision_class, self.files = torchvision_class(dataset), files_of(dataset)
        # All datasets use the same file names: what lies in `data_dir` may be of another one.
        others = [
            file for name in TORCHVISION_CLASSES if name != dataset for file in files_of(name)
        ]
        self.foreign_md5s = {md5 for file in others for md5 in (file.packed_md5, file.unpacked_md5)}
        self.mirrors = deque(given or self.torchvision_class.mirrors)
        self.timeout_s = FALLBACK_TIMEOUT_S / len(self.mirrors) if fail_fast else STALL_TIMEOUT_S
        self.raw = Path(TORCHVISION_CLASSES[dataset], "raw")
        self.folders = (data_dir / self.raw, data_dir / dataset, data_dir, cache_dir() / self.raw)
        self.problems: dict[Path, str] = {}  # of damaged files, each reported once

    def load(self) -> list[Tensor]:
        """Return images, uint8 [n, 28, 28], and labels, int64 [n], of training, then of testing."""
        # Where an old torchvision left a folder `processed`, its class reads that instead.
        old, folders = self.raw.with_name("processed"), (self.data_dir, cache_dir())
        roots = [root for root in folders if not os.access(root / old, os.F_OK)]
        for root in roots:
            if tensors := self._read(root):
                return tensors
        refusals = []
        for root in roots:
            try:
                check_writable(root)  # its message says more than that of a folder made in it later
                for file in self.files:
                    self._fill(root / self.raw, file)
            except OSError as error:
                refusals.append(f"{root}: {one_line(error)}")
                continue
            if tensors := self._read(root):
                return tensors
            refusals.append(f"{root}: a file changed while it was read")
        raise DataError(
            f"no folder to unpack {self.dataset}'s files in ({'; '.join(refusals)}): give a "
            "data folder that can be written"
        )

    def _read(self, root: Path) -> list[Tensor] | None:
        """Return what torchvision reads below `root`; None where not all of it is verified."""
        folder = root / self.raw
        expected = [self._expected_md5(folder, file) for file in self.files]
        # torchvision must not read a file of another size, which may be endless.
        if all(expected) and all(_fits(folder / file.name, file) for file in self.files):
            splits = [self.torchvision_class(root, train=train) for train in (True, False)]
            tensors = [tensor for split in splits for tensor in (split.data, split.targets)]
            # An IDX file is its header and its values, so that it need not be read again.
            if [md5_of(*idx_parts(tensor)) for tensor in tensors] == expected:
                return tensors
        for file in self.files:
            if self._verified(folder, file) is None:  # which reports a damaged file
                break
        return None

    def _fill(self, folder: Path, file: DataFile) -> None:
        if self._verified(folder, file) is not None:
            return
        check_writable(folder)  # before a download, whose result would be lost
        content = self._find(file)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file.name
        if path.is_file() and (path.stat().st_size != len(content) or path.read_bytes() != content):
            # A link, because two processes may do this at the same time: the first one keeps the
            # damaged file, and at no moment is there no file.
            with contextlib.suppress(FileExistsError):
                os.link(path, path.with_name(f"{path.name}.damaged"))
        write_atomically(path, content)
        if file.unpacked_md5 is None:
            write_atomically(Path(f"{path}.md5"), f"{md5_of(content)}  {path.name}\n")

    def _find(self, file: DataFile) -> bytes:
        if (content := self._find_locally(file)) is not None:
            return content
        name, limit = f"{file.name}.gz", file.max_packed_bytes
        try:
            packed = download_file(
                name, file.packed_md5, self.mirrors, max_bytes=limit, stall_seconds=self.timeout_s
            )
        except DownloadError as error:
            damaged = "".join(f"{path} {problem}. " for path, problem in self.problems.items())
            raise DownloadError(
                f"{damaged}{self._inventory()}, and {name} could not be downloaded ({error}). Put "
                "the missing files there, or name another mirror."
            ) from error
        return file.unpack(packed, self.mirrors[0] + name)

    def _find_locally(self, file: DataFile) -> bytes | None:
        for attempt in (self._verified, self._renamed, self._unpacked, self._unverifiable):
            for folder in self.folders:
                if (content := attempt(folder, file)) is not None:
                    return content
        return None

    def _inventory(self) -> str:
        """Return which of the four files are missing, which are there, and what else is."""
        here = {file.name: self._find_locally(file) is not None for file in self.files}
        lists = {
            "missing": [name for name, is_here in here.items() if not is_here],
            "found": [name for name, is_here in here.items() if is_here],
            "other files there": [
                path.name for path in _entries(self.data_dir) if path.name not in here
            ],
        }
        shown = (
            f"{key}: {', '.join(names[:MAX_LISTED])}{', …' if len(names) > MAX_LISTED else ''}"
            for key, names in lists.items()
            if names
        )
        return f"{self.data_dir} does not hold all of {self.dataset} ({'; '.join(shown)})"

    def _verified(self, folder: Path, file: DataFile) -> bytes | None:
        md5 = self._expected_md5(folder, file)
        return self._with_md5(folder / file.name, md5, file.num_bytes) if md5 else None

    def _unpacked(self, folder: Path, file: DataFile) -> bytes | None:
        path = folder / f"{file.name}.gz"
        if (packed := self._with_md5(path, file.packed_md5, file.max_packed_bytes)) is None:
            return None
        logger.info(f"unpacking {path}")
        return file.unpack(packed, str(path))

    def _renamed(self, folder: Path, file: DataFile) -> bytes | None:
        # As 7-Zip and Kaggle unpack it: `train-images.idx3-ubyte`, or a folder of the file's name.
        paths = (path for entry in _entries(folder) for path in (entry, *_entries(entry)))
        for path in itertools.islice(paths, MAX_ENTRIES):
            if _unpacked_size(path) != file.num_bytes:
                continue
            if (content := self._content(path, file.max_packed_bytes)) is None:
                continue
            if (md5 := md5_of(content)) != file.unpacked_md5:
                try:
                    content = file.unpack(content, str(path))
                except DataError:
                    continue
                # Other software may have packed it again.
                if md5 != file.packed_md5 and md5_of(content) != file.unpacked_md5:
                    continue
            if path.name != file.name:
                logger.info(f"reading {path} as {file.name}")
            return content
        return None

    def _unverifiable(self, folder: Path, file: DataFile) -> bytes | None:
        # What lies in `data_dir` itself may be of another dataset; with an MD5 it was verified.
        if folder == self.data_dir or self._expected_md5(folder, file):
            return None
        spelled = (p for p in _entries(folder) if p.name.lower().replace(".", "-") == file.name)
        path = next(spelled, folder / file.name)
        if (content := self._content(path, file.num_bytes)) is None:
            return None
        if problem := file.problem_in(content):
            self._report(path, f"is damaged ({problem})")
            return None
        logger.warning(
            f"{path} was checked by its size, header and labels only, because the MD5 of the "
            f"unpacked {self.dataset} is not known; a {file.name}.gz beside it can be verified"
        )
        return content

    def _expected_md5(self, folder: Path, file: DataFile) -> str | None:
        if file.unpacked_md5 is not None or folder == self.data_dir:
            return file.unpacked_md5
        try:
            return (folder / f"{file.name}.md5").read_text(encoding="ascii").split()[0]
        except (OSError, ValueError, IndexError):
            return None

    def _with_md5(self, path: Path, expected: str, max_bytes: int) -> bytes | None:
        content = self._content(path, max_bytes)
        if content is None or (found := md5_of(content)) == expected:
            return content
        if path.parent != self.data_dir or found not in self.foreign_md5s:
            other = f" or not of {self.dataset}" if path.parent == self.data_dir else ""
            what = f"(MD5 {found}, expected {expected}; {len(content):,} bytes)"
            self._report(path, f"is damaged{other} {what}")
        return None

    def _content(self, path: Path, max_bytes: int) -> bytes | None:
        try:
            if path in self.problems or not path.is_file():
                return None
            size = path.stat().st_size
            if size <= max_bytes:
                return path.read_bytes()
            self._report(path, f"is damaged ({size:,} bytes, expected at most {max_bytes:,})")
        except OSError as error:
            self._report(path, f"cannot be read ({one_line(error)})")
        return None

    def _report(self, path: Path, problem: str) -> None:
        self.problems[path] = problem
        logger.warning(f"{path} {problem} and is not used")


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
        if not path.is_file() or path.stat().st_size != file.num_bytes:
            return False
        with path.open("rb") as opened:
            return opened.read(len(file.header)) == file.header
    except OSError:
        return False
