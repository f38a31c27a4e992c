"""The files of MNIST, Fashion-MNIST and KMNIST: found, verified, downloaded, kept, read.

torchvision says what they are and where to download them. MNIST's are kept unpacked, in
torchvision's layout, `<root>/MNIST/raw/`, and then need no torchvision, whose import takes 2 s of
CPU and 150 MB. Of Fashion-MNIST and KMNIST only the MD5s of the packed files are known, and these
are what is kept.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ce.data.splits import DIGITS, Arrays, Dataset, idx_header, to_splits
from mnist_ce.data.tables import sort_name
from mnist_ce.system.device import environment
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import (
    cache_dir,
    check_writable,
    md5_of,
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
SIZES = {name: len(idx_header(*shape)) + math.prod(shape) for name, (shape, _) in FILES.items()}
# Of the values of all four files in order, as `Dataset.digest` takes it.
DIGESTS = {"mnist": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"}
STALL_TIMEOUT_S = 20.0
FALLBACK_TIMEOUT_S = 8.0  # all mirrors together, where another dataset can take the place
GZIP_BYTES = 4096  # a packed file has at most so many more; the real ones are far smaller
MAX_ENTRIES = 10_000  # of a folder that is searched for files of other names
MAX_LISTED = 8  # of them, in a message
_MOVING_BYTES = 1024  # a server that sends fewer within the waiting time has stalled


class DownloadError(DataError):
    """A file could not be downloaded; its arguments are the lines of its message."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


@dataclass(frozen=True)
class DataFile:
    """One of a dataset's four files."""

    name: str  # when unpacked; packed it ends in `.gz`
    num_bytes: int  # unpacked
    packed_md5: str  # in hex
    unpacked_md5: str | None  # None where it is not known

    def unpack(self, content: bytes) -> bytes | None:
        """Return the unpacked content if `content`, packed or not, is this file."""
        if (md5 := md5_of(content)) == self.unpacked_md5:
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
    except Exception as error:  # built for another torch it fails in many ways
        torch, torchvision = (environment().get(key) for key in ("torch", "torchvision"))
        raise DataError(
            f"torchvision {torchvision} does not work with torch {torch} ({one_line(error)}): "
            "install a matching pair as https://pytorch.org/get-started/locally/ says"
        ) from error
    return getattr(datasets, TORCHVISION_CLASSES[dataset])


def files_of(dataset: str) -> list[DataFile]:
    packed_md5s = dict(torchvision_class(dataset).resources)
    return [
        DataFile(name, SIZES[name], packed_md5s[f"{name}.gz"], md5 if dataset in DIGESTS else None)
        for name, (_, md5) in FILES.items()
    ]


class DatasetFiles:
    """The four files of `mnist`, `fashion-mnist` or `kmnist`, wherever they are.

    Each is looked for, unpacked or as `.gz`, in `<data_dir>/<class>/raw`, `<data_dir>/<dataset>`,
    `data_dir`, the user's cache and one level below these, by the words of its name and its MD5;
    and then downloaded, from `mirror` alone if given. A damaged file is named in a warning and left
    as it is. With `fail_fast`, silent mirrors are given up within seconds.
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
        self.problems: dict[Path, str] = {}  # of damaged files
        self.contents: dict[str, bytes] = {}  # of the unpacked files that are found or downloaded

    def load(self) -> Dataset:
        for root in (self.data_dir, cache_dir()):
            if self.name in DIGESTS and (dataset := self._read_unpacked(root)):
                return dataset
        mirrors = [self.mirror.rstrip("/") + "/"] if self.mirror else None
        self.mirrors = deque(mirrors or torchvision_class(self.name).mirrors)
        self.files = files_of(self.name)
        self._search()
        for path, problem in self.problems.items():
            logger.warning(f"{path} {problem} and is not used")
        kept: dict[str, bytes] = {}
        for file in self.files:
            if file.name not in self.contents:
                packed = self._download(file)
                self.contents[file.name] = file.unpack(packed) or b""
                kept[f"{file.name}.gz"] = packed
        self._keep(self.contents if self.name in DIGESTS else kept)
        return self._dataset()

    def _read_unpacked(self, root: Path) -> Dataset | None:
        try:
            for name, num_bytes in SIZES.items():
                self.contents[name] = read_regular(root / self.raw / name, num_bytes)
            dataset = self._dataset()
        except (OSError, ValueError):
            return None
        return dataset if dataset.digest == DIGESTS[self.name] else None

    def _dataset(self) -> Dataset:
        arrays = []
        for name, (shape, _) in FILES.items():
            values = np.frombuffer(self.contents[name], np.uint8, offset=len(idx_header(*shape)))
            arrays.append(values.reshape(shape).copy())  # torch wants memory that can be written
        classes = DIGITS if self.name in DIGESTS else torchvision_class(self.name).classes
        parts = {"train": Arrays(*arrays[:2]), "test": Arrays(*arrays[2:])}
        splits, class_names = to_splits(parts, self.name, [n.partition(" - ")[0] for n in classes])
        return Dataset(self.name, splits["train"], splits["test"], class_names)

    def _search(self) -> None:
        """Take over files of the right MD5, and note the damaged ones."""
        self.contents.clear()
        # All datasets use the same file names: what has one may be of another dataset.
        every = [file for other in TORCHVISION_CLASSES for file in files_of(other)]
        known_md5s = {md5 for file in every for md5 in (file.packed_md5, file.unpacked_md5)}
        by_words = {sort_name(file.name): file for file in self.files}
        cache = cache_dir() / self.raw
        for folder in (self.data_dir / self.raw, self.data_dir / self.name, self.data_dir, cache):
            # As 7-Zip and Kaggle unpack it: `train-images.idx3-ubyte`, or in a folder of its name.
            entries = (path for entry in _entries(folder) for path in (entry, *_entries(entry)))
            for path in filter(Path.is_file, itertools.islice(entries, MAX_ENTRIES)):
                file = by_words.get(sort_name(path.name))
                if file is None or file.name in self.contents:
                    continue
                try:
                    content = read_regular(path, file.num_bytes + GZIP_BYTES)
                except OSError as error:
                    self.problems[path] = f"is damaged ({one_line(error)})"
                    continue
                md5 = md5_of(content)
                expected = file.packed_md5 if path.suffix == ".gz" else file.unpacked_md5
                if unpacked := file.unpack(content):
                    self.contents[file.name] = unpacked
                elif expected and md5 not in known_md5s:
                    what = f"MD5 {md5}, expected {expected}; {len(content):,} bytes"
                    self.problems[path] = f"is damaged ({what})"

    def _keep(self, contents: dict[str, bytes]) -> None:
        """Write files into the folder, where other files may be the user's, or the cache."""
        for root in (self.data_dir, cache_dir()):
            try:
                for name, content in contents.items():
                    path = root / self.raw / name
                    if path.is_file() and path.read_bytes() == content:
                        continue
                    if path.exists() and not (path.is_file() and root == cache_dir()):
                        raise FileExistsError(f"{path} is another file")
                    for folder in (root, path.parent):
                        check_writable(folder)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, content)
                return
            except OSError as error:
                logger.info(f"{self.name} is not kept in {root}: {one_line(error)}")

    def _download(self, file: DataFile) -> bytes:
        """Return the packed file; a DownloadError says what is missing, found, and there beside."""
        timeout_s = FALLBACK_TIMEOUT_S / len(self.mirrors) if self.fail_fast else STALL_TIMEOUT_S
        try:
            return download_file(file, self.mirrors, stall_seconds=timeout_s)
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
            folder = f"the folder {self.data_dir} does not hold all of {self.name}"
            raise DownloadError(
                f"{damaged}{folder} ({'; '.join(shown)})",
                f"{file.name}.gz could not be downloaded ({error})",
                "put the files there, or name their folder (--data-dir or MNIST_CE_DATA_DIR) or a "
                "server that has them (--mirror URL)",
            ) from error


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(itertools.islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return []


def download_file(file: DataFile, mirrors: deque[str], *, stall_seconds: float) -> bytes:
    """Download a packed file from the first mirror, an address ending in a slash, that has it.

    A mirror that fails goes to the end of `mirrors`: the next file need not wait for it again.
    """
    reasons = []
    for _ in range(len(mirrors)):
        url = f"{mirrors[0]}{file.name}.gz"
        logger.info(f"downloading {url}")
        try:
            content = fetch(url, max_bytes=file.num_bytes + GZIP_BYTES, stall_seconds=stall_seconds)
            if file.unpack(content) is not None:
                return content
            is_page = content[:100].lstrip().startswith(b"<")
            found = "a web page, as of a login" if is_page else f"MD5 {md5_of(content)}"
            reasons.append(f"{url}: has {found}, expected MD5 {file.packed_md5}")
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
        mirrors.rotate(-1)
    raise DownloadError(*reasons)


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
            # OpenSSL itself knows `SSL_CERT_FILE`.
            context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))
            timeout = 2 * stall_seconds
            with urllib.request.urlopen(request, timeout=timeout, context=context) as response:
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
        reason = one_line(cause if isinstance(cause, Exception) else failures[0])
        advice = "; SSL_CERT_FILE names certificates to trust" * ("CERTIFICATE" in reason)
        raise DownloadError(reason + advice) from failures[0]
    return bytes(content)
