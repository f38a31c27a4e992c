"""MNIST, Fashion-MNIST and KMNIST: their files found, verified, fetched, and read by torchvision.

torchvision reads `<root>/<class>/raw/`, unpacked, and verifies nothing there. So the files are
verified here and brought into that layout first: in the data folder, or in the user's cache where
that folder cannot be written.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from mnist_ce.data.download import mirror_url
from mnist_ce.data.files import DatasetFiles
from mnist_ce.data.registry import source_of
from mnist_ce.data.splits import Split

__all__ = ["load_files"]

_STALL_SECONDS = 20.0
# `auto` has something to fall back on: all mirrors together may be silent for this long.
_HASTY_SECONDS = 8.0


def load_files(
    name: str,
    data_dir: Path,
    *,
    mirror: str | None = None,
    hasty: bool = False,
) -> tuple[Split, Split]:
    """Load the training and the test split of MNIST or a relative of it.

    Each file is looked for, unpacked or as `.gz`, in `<data_dir>/<class>/raw` (torchvision's
    layout), `<data_dir>/<name>`, `<data_dir>` itself and the user's cache, then downloaded. In
    `data_dir` itself only a file with a known MD5 counts, as all these datasets use the same names.
    A damaged file is named and not used; one that stands where the good one goes is kept as
    `NAME.damaged`.

    Args:
        name: `mnist`, `fashion-mnist` or `kmnist`.
        data_dir: Where to look, and to keep what was unpacked. It need neither exist nor be
            writable.
        mirror: The only address to download from, in place of torchvision's mirrors.
        hasty: Give up on silent mirrors within seconds.

    Raises:
        DownloadError: If a file is nowhere and no mirror gives it.
        DataError: If the files can be kept nowhere, or torchvision does not work.
        UsageError: If `mirror` is not an address.
    """
    given = mirror_url(mirror) if mirror is not None else None
    source = source_of(name)
    mirrors = [given] if given else source.mirrors
    shelves = DatasetFiles(
        source,
        data_dir,
        mirrors=deque(mirrors),
        stall_seconds=_HASTY_SECONDS / len(mirrors) if hasty else _STALL_SECONDS,
    )
    root = shelves.complete_root()
    splits = []
    for train in (True, False):
        dataset = source.torchvision_class(root, train=train, download=False)
        splits.append(Split(dataset.data, dataset.targets))
    return splits[0], splits[1]
