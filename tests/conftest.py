from __future__ import annotations

import os
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
