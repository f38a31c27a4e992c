from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.dataset import Dataset, Split
from mnist_ce.data.synthetic.generate import generate, write_synthetic
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.trainer import train

# Taken out, so that no test depends on it unasked: it goes before what a config says.
REAL_MNIST = os.environ.pop("MNIST_CE_DATA_DIR", None)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the real MNIST files; what needs it is skipped where it is not given."""
    folder = REAL_MNIST
    if not folder:
        pytest.skip("needs the real MNIST: set MNIST_CE_DATA_DIR to a folder with its files")
    if not Path(folder).is_dir():
        pytest.skip(f"needs the real MNIST: MNIST_CE_DATA_DIR={folder} is not a folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose synthetic set has 300 + 100 images, which subprocesses can use too."""
    folder = tmp_path_factory.mktemp("data")
    write_synthetic(folder / "synthetic", generate(300, seed=1), generate(100, seed=2))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests unpack out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every dataset's name stand for 1,000 + 1,000 digits, which train in no time."""
    train, test = _small_splits()

    def load(name: str, *arguments: object, **options: object) -> Dataset:
        digits = tuple("0123456789")
        return Dataset("mnist" if name == "auto" else name, train, test, digits, "0" * 64)

    monkeypatch.setattr(dataset_module, "load_dataset", load)


@functools.cache
def _small_splits() -> tuple[Split, Split]:
    return generate(1_000, seed=1), generate(1_000, seed=2)


SMALL_RUN: dict[str, Any] = {
    "model.hidden": [24, 16],
    "train.epochs": 2,
    "train.batch_size": 30,
    "train.threads": 1,
    "optimizer.learning_rate": 0.1,
    "run.plots": False,
}


@pytest.fixture
def small_settings(tiny_data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a tenth of a second, in any process, on 300 + 100 digits."""
    data = {"data.dataset": "synthetic", "data.dir": str(tiny_data_dir)}
    return {**SMALL_RUN, **data, "run.output": str(tmp_path)}


@pytest.fixture
def train_small(small_data: None, tmp_path: Path) -> Callable[..., TrainResult]:
    """Return a function that trains a small network on 1,000 digits into `tmp_path`.

    It takes the run's name and settings: `train_small("a", optimizer__momentum=0.9)`.
    """

    def train_run(name: str = "", **settings: Any) -> TrainResult:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        place = {"run.output": str(tmp_path), "run.name": name}
        return train(None, {**SMALL_RUN, **place, **named})

    return train_run


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns what was logged at level INFO or above."""
    caplog.set_level(logging.INFO, "mnist_ce")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def log_warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the warnings logged."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
