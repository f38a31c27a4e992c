from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.cli import main
from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.splits import Dataset
from mnist_ce.data.synthetic import FILE_NAME, generate, write_synthetic
from mnist_ce.training import tune as tune_module
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.trainer import train

# Taken out, so that no test depends on it unasked: it goes before what a config says.
REAL_MNIST = os.environ.pop("MNIST_CE_DATA_DIR", None)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the real MNIST files; what needs it is skipped where it is not given."""
    if not REAL_MNIST or not Path(REAL_MNIST).is_dir():
        pytest.skip(f"needs the real MNIST: MNIST_CE_DATA_DIR={REAL_MNIST} is not its folder")
    return Path(REAL_MNIST).resolve()


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose synthetic set has 300 + 100 images, which subprocesses can use too."""
    folder = tmp_path_factory.mktemp("data")
    write_synthetic(folder / "synthetic" / FILE_NAME, generate(300, seed=1), generate(100, seed=2))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests unpack out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def load_small() -> Callable[..., Dataset]:
    """Return what stands in for `load_dataset`: 1,000 + 1,000 digits, whatever the name."""
    train_split, test_split = generate(1_000, seed=1), generate(1_000, seed=2)

    def load(name: str, *arguments: object, **options: object) -> Dataset:
        name = "mnist" if name == "auto" else name
        return Dataset(name, train_split, test_split, tuple("0123456789"))

    return load


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch, load_small: Callable[..., Dataset]) -> None:
    """Let every dataset's name stand for 1,000 + 1,000 digits, which train in no time."""
    for module in (dataset_module, tune_module):
        monkeypatch.setattr(module, "load_dataset", load_small)


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


@pytest.fixture(scope="session")
def train_small_in(load_small: Callable[..., Dataset]) -> Callable[..., TrainResult]:
    """`train_small` for fixtures of a whole module: the folder is its first argument."""

    def train_run(folder: Path, name: str = "", **settings: Any) -> TrainResult:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        place = {"run.output": str(folder), "run.name": name}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset_module, "load_dataset", load_small)
            return train(None, {**SMALL_RUN, **place, **named}, progress=False)

    return train_run


@pytest.fixture
def train_small(
    small_data: None, tmp_path: Path, train_small_in: Callable[..., TrainResult]
) -> Callable[..., TrainResult]:
    """Return a function that trains a small network on 1,000 digits into `tmp_path`.

    It takes the run's name and settings: `train_small("a", optimizer__momentum=0.9)`.
    """
    return functools.partial(train_small_in, tmp_path)


@pytest.fixture(scope="module")
def two_runs(
    tmp_path_factory: pytest.TempPathFactory, train_small_in: Callable[..., TrainResult]
) -> Path:
    """A folder with the runs `a` and `b`, of one epoch and with a validation split."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        train_small_in(folder, name, train__epochs=1, data__validation_size=100)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: two for small matrices mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Start = Callable[..., ForkServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process quickly, as its parent has imported everything; end those that still run."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnist_ce.training.trainer", "mnist_ce.cli.terminal"])
    processes: list[ForkServerProcess] = []

    def run(target: Callable[..., object], *arguments: Any) -> ForkServerProcess:
        processes.append(context.Process(target=target, args=arguments))
        processes[-1].start()
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command and returns its exit code and its error line."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") or code > 128  # a stop is no error
        return code, error

    return run


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns what was logged at level INFO or above."""
    caplog.set_level(logging.INFO, "mnist_ce")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def log_warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the warnings logged."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture(scope="session")
def demo(
    tmp_path_factory: pytest.TempPathFactory, train_small_in: Callable[..., TrainResult]
) -> Iterator[Any]:
    """A server in this process, with one run beside the shipped weights (tests/demo/running.py)."""
    pytest.importorskip("fastapi")
    from running import Demo, serving

    from mnist_ce.demo.inference import InferenceService
    from mnist_ce.demo.server import make_app

    folder = tmp_path_factory.mktemp("demo")
    train_small_in(folder / "runs", "small")
    service = InferenceService(folder / "runs", 1)
    app = make_app(service, "127.0.0.1", None, folder / "corrections")
    with contextlib.closing(service.pool), serving(app) as url:
        yield Demo(url, folder, service, app.state.server)
