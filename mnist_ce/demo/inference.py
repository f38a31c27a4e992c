"""Predictions for requests: those that arrive at the same time share one run of the network."""

from __future__ import annotations

import asyncio
import contextlib
import io
import multiprocessing
import warnings
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from mnist_ce.prediction.predict import Prediction, PredictOptions, Predictor
from mnist_ce.reader.pool import PreprocessPool
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.run_dir import SHIPPED_WEIGHTS, find_checkpoint, list_runs

SHIPPED = tuple(dict.fromkeys(SHIPPED_WEIGHTS.values()))  # each once, without other names
MAX_BATCH = 32  # images
MAX_PIXELS = 50_000_000  # of an image, 150 MB decoded; as many are decoded at once as processes run
MAX_BATCH_SECONDS = 20.0  # then the processes that decode images are replaced
CHUNK = 2  # images per message to a process, so that few images that wait use every process

Records: TypeAlias = list[Prediction]


@lru_cache(maxsize=8)
def _load(path: Path, modified_ns: int) -> TrainedModel:
    return load_model(path)


@dataclass
class _Batch:
    """Images that wait for the same network and settings."""

    trained: TrainedModel
    settings: PredictOptions
    items: list[tuple[bytes, asyncio.Future[Records]]] = field(default_factory=list)


class InferenceService:
    """The checkpoints at hand, and the threads and processes that classify images with them.

    `predict` must be awaited in one event loop.
    """

    def __init__(self, output: Path, num_processes: int) -> None:
        self.output, self.num_processes = output, num_processes
        self._pool = PreprocessPool(num_processes, chunk=CHUNK)
        # While one thread waits for the images of its batch, the other runs the network.
        self._executor, self._num_idle = ThreadPoolExecutor(2), 2
        self._waiting: dict[tuple[int, PredictOptions], _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def close(self) -> None:
        """End the threads and processes without waiting for what they do."""
        self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._pool.__exit__(SystemExit, None, None)
        _end_processes()

    def checkpoints(self) -> dict[str, Path]:
        """Return the weights at hand by name: the shipped ones, then the runs, newest first."""
        shipped = {name: find_checkpoint(name, self.output) for name in SHIPPED}
        runs = {run.name: run.model_path for run, _ in list_runs(self.output)}
        return shipped | {name: path for name, path in runs.items() if path.is_file()}

    def trained(self, name: str) -> TrainedModel:
        """Return a network by its name in `checkpoints`; a KeyError if it is none of them."""
        is_shipped = name in SHIPPED  # then nothing is listed, which takes time with each request
        path = find_checkpoint(name, self.output) if is_shipped else self.checkpoints()[name]
        return _load(path, path.stat().st_mtime_ns)

    async def predict(
        self, content: bytes, trained: TrainedModel, settings: PredictOptions
    ) -> Records:
        """Return the records of an image, as `mnist_ce.predict` does."""
        future: asyncio.Future[Records] = asyncio.get_running_loop().create_future()
        key = (id(trained), settings)
        self._waiting.setdefault(key, _Batch(trained, settings)).items.append((content, future))
        if self._num_idle:
            self._num_idle -= 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _work(self) -> None:
        """Classify batch after batch until no image waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            key, batch = next(iter(self._waiting.items()))
            del self._waiting[key]
            if rest := batch.items[MAX_BATCH:]:
                self._waiting[key] = _Batch(batch.trained, batch.settings, rest)
            # Without those whose request has been given up.
            batch.items = [item for item in batch.items[:MAX_BATCH] if not item[1].done()]
            timer = loop.call_later(MAX_BATCH_SECONDS, _end_processes)
            try:
                results = await loop.run_in_executor(self._executor, self._classify, batch)
            except Exception as error:
                for _, future in batch.items:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), records in zip(batch.items, results, strict=True):
                    if not future.done():
                        future.set_result(records)
            finally:
                timer.cancel()
        self._num_idle += 1

    def _classify(self, batch: _Batch) -> list[Records]:
        trained, settings, pool = batch.trained, batch.settings, self._pool
        predictor = Predictor(trained, settings)
        try:
            images = list(
                pool.preprocess_all(
                    [content for content, _ in batch.items], predictor.preprocess_options
                )
            )
        except BrokenExecutor:  # a process was ended: for its memory, for example
            if self._pool is pool and not self._is_closed:
                self._pool = PreprocessPool(self.num_processes, chunk=CHUNK)
            if len(batch.items) == 1:
                reason = "preprocessing the image took too much memory or time"
                return [[Prediction(path=None, status="error", reason=reason)]]
            alone = (_Batch(trained, settings, [item]) for item in batch.items)
            return [records for one in alone for records in self._classify(one)]
        return [result.records for result in predictor.predict_batch(images)]


def _end_processes() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def num_pixels(content: bytes) -> int:
    """Return the size of an image by its header; 0 where that cannot be read."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as image:
                return image.width * image.height
        except Image.DecompressionBombError:  # beyond Pillow's own limit
            return MAX_PIXELS + 1
    return 0
