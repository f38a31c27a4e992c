"""Predictions for requests: processes preprocess the images, one thread runs the networks."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from fastapi import HTTPException

from mnist_ce.prediction.predict import Prediction, PredictOptions, Predictor
from mnist_ce.reader.pool import PreprocessPool
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.run_dir import SHIPPED_WEIGHTS, find_checkpoint, list_runs
from mnist_ce.system.errors import ImageTooLargeError
from mnist_ce.system.text import sanitize

SHIPPED = tuple(dict.fromkeys(SHIPPED_WEIGHTS.values()))  # each once, without other names


@lru_cache(maxsize=8)
def _load(path: Path, modified_ns: int) -> TrainedModel:
    return load_model(path)


class InferenceService:
    """The checkpoints at hand, and what classifies images with them."""

    def __init__(self, output: Path, num_processes: int) -> None:
        self.output, self.pool = output, PreprocessPool(num_processes, is_limited=True)
        self._network_thread = ThreadPoolExecutor(1)

    def close(self) -> None:
        """End the threads and processes without waiting for what they do."""
        self._network_thread.shutdown(wait=False, cancel_futures=True)
        self.pool.close()

    def checkpoints(self) -> dict[str, Path]:
        """Return the weights at hand by name: the shipped ones, then the runs, newest first."""
        shipped = {name: find_checkpoint(name, self.output) for name in SHIPPED}
        runs = {run.name: run.model_path for run, _ in list_runs(self.output)}
        return shipped | {n: p for n, p in runs.items() if p.is_file() and n not in shipped}

    def trained(self, name: str) -> TrainedModel:
        """Return a network by its name in `checkpoints`, which may take a while; else a 404."""
        is_shipped = name in SHIPPED  # then nothing is listed, which takes time with each request
        path = find_checkpoint(name, self.output) if is_shipped else self.checkpoints().get(name)
        if path is None:
            raise HTTPException(404, f"there is no checkpoint {sanitize(name)!r}")
        return _load(path, path.stat().st_mtime_ns)

    async def predict(
        self, content: bytes, trained: TrainedModel, options: PredictOptions
    ) -> list[Prediction]:
        """Return the records of an image, as `mnist_ce.predict` does.

        Raises:
            ImageTooLargeError: If the image has too many pixels.
        """
        predictor = Predictor(trained, options)
        preprocessing = self.pool.preprocess(content, predictor.preprocess_options)
        image = await asyncio.wrap_future(preprocessing)
        if image.is_too_large:
            raise ImageTooLargeError(str(image.error))
        loop = asyncio.get_running_loop()
        (records,) = await loop.run_in_executor(
            self._network_thread, predictor.predict_batch, [image]
        )
        return records
