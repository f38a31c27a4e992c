from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the real MNIST files; what needs it is skipped where it is not given."""
    folder = os.environ.get("MNIST_CE_DATA_DIR")
    if not folder:
        pytest.skip("needs the real MNIST: set MNIST_CE_DATA_DIR to a folder with its files")
    if not Path(folder).is_dir():
        pytest.skip(f"needs the real MNIST: MNIST_CE_DATA_DIR={folder} is not a folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests unpack out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
