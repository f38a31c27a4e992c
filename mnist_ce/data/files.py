"""The files of MNIST, Fashion-MNIST and KMNIST: found, verified, downloaded, unpacked, read.

torchvision says what they are and where to download them. Verified files are brought into its
layout, `<root>/<class>/raw/`, in the user's cache where the data directory cannot be written, and
what is read from there is compared. MNIST's then need no torchvision, whose import takes 2 s of CPU
and 150 MB. Of Fashion-MNIST and KMNIST only the MD5s of the packed files are known: these are kept
beside the unpacked ones, which are not used without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import os
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ce.data.splits import DIGITS, Arrays, Dataset, idx_header, to_splits
from mnist_ce.system.device import environment
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import (
    cache_dir,
    check_writable,
    md5_of,
    open_regular,
    read_regular,
    write_atomically,
)
from mnist_ce.system.text import one_line

logger = logging.getLogger(__name__)

TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
# Each file's shape, and the MD5 of MNIST's when unpacked; torchvision lists those of the .gz only.
FILES = {
    "train-images-idx3-ubyte": ((60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ((60_000,), "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ((10_000,), "27ae3e4e09519cfbb04c329615203637"),
}
# Of the values of all four files in order, as `Dataset.digest` takes it.
DIGESTS = {"mnist": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"}
STALL_TIMEOUT_S = 20.0
FALLBACK_TIMEOUT_S = 8.0  # all mirrors together, where another dataset can take the place
GZIP_BYTES = 4096  # a packed file has at most so many more; the real ones are far smaller
MAX_ENTRIES = 10_000  # of a folder that is searched for files of other names
MAX_LISTED = 8  # of them, in a message
_MOVING_BYTES = 1024  # a server that sends fewer within the waiting time has stalled


class DownloadError(DataError):
    """A file could not be downloaded."""


@dataclass(frozen=True)
class DataFile:
    """One of a dataset's four files."""

    name: str  # when unpacked; packed it ends in `.gz`
    num_bytes: int  # unpacked
    packed_md5: str  # in hex
    unpacked_md5: str | None  # None where it is not known

    def verified(self, content: bytes, md5: str) -> bytes | None:
        """Return unpacked content if `content`, packed or not and of this MD5, is this file."""
        if md5 == self.unpacked_md5:
            return content
        decompressor = zlib.decompressobj(wbits=31)  # gzip
        try:
            unpacked = decompressor.decompress(content, self.num_bytes + 1)
        except zlib.error:
            return None
        # Other software may have packed it again.
        is_known = md5 == self.packed_md5 or md5_of(unpacked) == self.unpacked_md5
        return unpacked if is_known and decompressor.eof else None


def torchvision_class(dataset: str) -> Any:  # noqa: ANN401 - torchvision carries no types
    """Return `torchvision.datasets.MNIST` or the subclass of it that reads a dataset."""
    try:
        from torchvision import datasets
    # Built for another torch it fails in many ways, "operator torchvision::nms does not exist"
    # (RuntimeError) and undefined symbols (OSError) among them.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        torch, torchvision = (environment().get(key) for key in ("torch", "torchvision"))
        raise DataError(
            f"torchvision {torchvision} does not work with torch {torch} ({one_line(error)}): "
            "install a matching pair as https://pytorch.org/get-started/locally/ says"
        ) from error
    return getattr(datasets, TORCHVISION_CLASSES[dataset])


def files_of(dataset: str) -> list[DataFile]:
    packed_md5s, files = dict(torchvision_class(dataset).resources), []
    for name, (shape, md5) in FILES.items():
        num_bytes, unpacked = len(idx_header(*shape)) + math.prod(shape), dataset == "mnist" and md5
        files.append(DataFile(name, num_bytes, packed_md5s[f"{name}.gz"], unpacked or None))
    return files


class DatasetFiles:
    """The four files of `mnist`, `fashion-mnist` or `kmnist`, wherever they are.

    Each is looked for, unpacked or as `.gz`, in `<data_dir>/<class>/raw`, `<data_dir>/<dataset>`,
    `data_dir`, the user's cache and one level below these, by its MD5, whatever its name; and then
    downloaded, from `mirror` alone if given. A damaged file is named in a warning and not used; one
    that lies where the good one goes is kept as `NAME.damaged`. With `fail_fast`, silent mirrors
    are given up within seconds.
    """

    def __init__(
        self, name: str, data_dir: Path, mirror: str = "", *, fail_fast: bool = False
    ) -> None:
        if mirror and not mirror.startswith(("http://", "https://", "file://")):
            raise UsageError(
                f"data.mirror: {mirror!r} must start with http://, https:// or file://"
            )
        self.name, self.data_dir, self.mirror, self.fail_fast = name, data_dir, mirror, fail_fast
        self.raw = Path(TORCHVISION_CLASSES[name], "raw")
        self.folders = (data_dir / self.raw, data_dir / name, data_dir, cache_dir() / self.raw)
        self.problems: dict[Path, str] = {}  # of damaged files
        self.contents: dict[str, bytes] = {}  # of the unpacked files that are found or downloaded

    @cached_property
    def torchvision_class(self) -> Any:  # noqa: ANN401
        return torchvision_class(self.name)

    @cached_property
    def files(self) -> list[DataFile]:
        return files_of(self.name)

    @cached_property
    def mirrors(self) -> deque[str]:
        one = self.mirror and self.mirror.rstrip("/") + "/"
        return deque([one] if one else self.torchvision_class.mirrors)

    def load(self) -> Dataset:
        roots = (self.data_dir, cache_dir())
        if known := DIGESTS.get(self.name):
            for root in roots:
                if dataset := self._read(root, known):
                    return dataset
        self._search()
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
        problem = f"no folder to unpack {self.name} in ({'; '.join(refusals)})"
        raise DataError(f"{problem}: give a folder that can be written")

    def _read(self, root: Path, digest: str) -> Dataset | None:
        arrays = []
        for name, (shape, _) in FILES.items():
            header, num_values = idx_header(*shape), math.prod(shape)
            try:
                content = read_regular(root / self.raw / name, len(header) + num_values)
            except OSError:
                return None
            if len(content) != len(header) + num_values or not content.startswith(header):
                return None
            values = np.frombuffer(content, np.uint8, offset=len(header))
            arrays.append(values.reshape(shape).copy())  # torch wants memory that can be written
        classes = DIGITS if self.name in DIGESTS else self.torchvision_class.classes
        parts = {"train": Arrays(*arrays[:2]), "test": Arrays(*arrays[2:])}
        splits, class_names = to_splits(parts, self.name, [n.partition(" - ")[0] for n in classes])
        dataset = Dataset(self.name, splits["train"], splits["test"], class_names)
        return dataset if dataset.digest == digest else None

    def _search(self) -> None:
        """Take over files of the right MD5, whatever their names, and note the damaged ones."""
        # All datasets use the same file names: what has one may be of another dataset.
        every = [file for other in TORCHVISION_CLASSES for file in files_of(other)]
        known_md5s = {md5 for file in every for md5 in (file.packed_md5, file.unpacked_md5)}
        names = [name for file in self.files for name in (file.name, f"{file.name}.gz")]
        for folder in self.folders:
            # As 7-Zip and Kaggle unpack it: `train-images.idx3-ubyte`, or in a folder of its name.
            entries = (path for entry in _entries(folder) for path in (entry, *_entries(entry)))
            named = (folder / name for name in names)
            paths = itertools.chain(named, itertools.islice(entries, MAX_ENTRIES))
            for path, file in itertools.product(filter(Path.is_file, paths), self.files):
                if path in self.problems or file.name in self.contents:
                    continue
                md5s = {file.name: file.unpacked_md5, f"{file.name}.gz": file.packed_md5}
                expected = md5s.get(path.name)
                if not expected and _unpacked_size(path) != file.num_bytes:
                    continue
                try:
                    content = read_regular(path, file.num_bytes + GZIP_BYTES)
                except OSError as error:
                    self.problems[path] = f"is damaged ({one_line(error)})"
                    continue
                md5 = md5_of(content)
                if unpacked := file.verified(content, md5):
                    self.contents[file.name] = unpacked
                elif expected and md5 not in known_md5s:
                    what = f"MD5 {md5}, expected {expected}; {len(content):,} bytes"
                    self.problems[path] = f"is damaged ({what})"

    def _fill(self, root: Path, file: DataFile) -> None:
        path, content = root / self.raw / file.name, self.contents.get(file.name)
        if content is not None and _holds(path, content):
            return
        for folder in (root, path.parent):
            check_writable(folder)  # before a download, whose result would be lost
        if content is None:
            packed = self._download(file)
            content = file.verified(packed, file.packed_md5)
            assert content is not None  # the MD5 is that of the packed file
            self.contents[file.name] = content
            if file.unpacked_md5 is None:
                _replace(path.with_name(f"{file.name}.gz"), packed)
        _replace(path, content)

    def _download(self, file: DataFile) -> bytes:
        """Return the packed file; a DownloadError says what is missing, found, and there beside."""
        name, limit = f"{file.name}.gz", file.num_bytes + GZIP_BYTES
        timeout_s = FALLBACK_TIMEOUT_S / len(self.mirrors) if self.fail_fast else STALL_TIMEOUT_S
        try:
            return download_file(
                name, file.packed_md5, self.mirrors, max_bytes=limit, stall_seconds=timeout_s
            )
        except DownloadError as error:
            names, others = [file.name for file in self.files], _entries(self.data_dir)
            lists = {
                "missing": [name for name in names if name not in self.contents],
                "found": [name for name in names if name in self.contents],
                "other files there": [p.name for p in others if p.name not in names],
            }
            shown = (
                f"{key}: {', '.join(names[:MAX_LISTED])}{', …' * (len(names) > MAX_LISTED)}"
                for key, names in lists.items()
                if names
            )
            damaged = "".join(f"{path} {problem}. " for path, problem in self.problems.items())
            raise DownloadError(
                f"{damaged}{self.data_dir} does not hold all of {self.name} ({'; '.join(shown)}), "
                f"and {name} could not be downloaded ({error}). Put the missing files there, or "
                "name another mirror."
            ) from error


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _replace(path: Path, content: bytes) -> None:
    """Write a file, and keep another one that lies there as `NAME.damaged`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file")  # writing may wait for ever
    if path.is_file() and not _holds(path, content):
        # A link, because two processes may do this at the same time: the first one keeps the
        # damaged file, and at no moment is there no file.
        with contextlib.suppress(FileExistsError):
            os.link(path, path.with_name(f"{path.name}.damaged"))
    write_atomically(path, content)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(itertools.islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return []


def _unpacked_size(path: Path) -> int | None:
    """Return the size of a file, of a `.gz` as its last four bytes give it; None: no file."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        if file.read(2) != b"\x1f\x8b":
            return path.stat().st_size
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")
    return None


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
