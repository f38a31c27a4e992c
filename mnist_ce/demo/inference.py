"""Predictions for requests, and what happens inside a network for one image."""

from __future__ import annotations

import asyncio
import copy
import itertools
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from anyio.to_thread import run_sync
from fastapi import HTTPException

from mnist_ce.explain.image import explain_record
from mnist_ce.prediction.predict import Predictions, PredictOptions, Predictor
from mnist_ce.reader.pool import PreprocessPool
from mnist_ce.runs.load_model import TrainedModel, load_model, needs_options
from mnist_ce.runs.run_dir import SHIPPED_WEIGHTS, find_checkpoint, list_runs
from mnist_ce.system.errors import ImageTooLargeError
from mnist_ce.system.notebook import png_url
from mnist_ce.system.text import sanitize

SHIPPED = tuple(dict.fromkeys(SHIPPED_WEIGHTS.values()))  # each once, without other names
GRACE_SECONDS = 1.0  # for an image whose client has left
T = TypeVar("T")


async def in_time(future: Future[T]) -> T:
    """Wait for a process, which is ended some time after the client has left."""
    job = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:  # at once, it would cost a second: that of starting the next
        asyncio.get_running_loop().call_later(GRACE_SECONDS, job.cancel)
        raise


@lru_cache(maxsize=8)
def load_cached(path: Path, modified_ns: int, model: str | None = None) -> TrainedModel:
    return load_model(path, model=model if needs_options(path) else None)


class InferenceService:
    """The checkpoints at hand, and processes that preprocess images."""

    def __init__(self, output: Path, num_processes: int, model: str | None = None) -> None:
        # Two more than wanted: while two images take long, the others share the cores with them.
        self.output, self.pool = output, PreprocessPool(num_processes + 2)
        self.model = model  # of runs of a module: see `load_model`

    def checkpoints(self) -> dict[str, Path]:
        shipped = {name: find_checkpoint(name, self.output) for name in SHIPPED}
        runs = {run.name: run.model_path for run, _ in list_runs(self.output)}
        return shipped | {n: p for n, p in runs.items() if p.is_file() and n not in shipped}

    def trained(self, name: str) -> TrainedModel:
        """Return a network by its name in `checkpoints`, which may take a while; else a 404."""
        is_shipped = name in SHIPPED  # then nothing is listed, which takes time with each request
        path = find_checkpoint(name, self.output) if is_shipped else self.checkpoints().get(name)
        if path is None:
            raise HTTPException(404, f"there is no checkpoint {sanitize(name)!r}")
        return load_cached(path, path.stat().st_mtime_ns, self.model)

    async def predict(
        self, name: str, content: bytes, trained: TrainedModel, options: PredictOptions
    ) -> Predictions:
        """Return the records of an image of this name; an ImageTooLargeError instead of one."""
        predictor = Predictor(trained, options)
        pages = await in_time(self.pool.preprocess(content, predictor.preprocess_options))
        if pages[0].is_too_large:
            raise ImageTooLargeError(str(pages[0].error))
        results = await run_sync(predictor.predict_batch, pages)
        if any(map(predictor.must_reread, results)):
            return await self.predict(name, content, trained, replace(options, multi=True))
        records = itertools.chain.from_iterable(results)
        return Predictions(replace(record, path=name) for record in records)


def inspect_image(
    trained: TrainedModel,
    records: Predictions,
    target: str | None,
    index: int,
    steps: int,
    learning_rate: float,
) -> dict[str, Any]:
    """Return the records of an image as plain values, with all that led to that at `index`.

    `explanation`, None where there is no digit, is of the loss for the class named `target`, None:
    the predicted one. With `steps` it is that of a copy of the network after SGD on this digit.
    """
    record = records[min(index, len(records) - 1)]
    explained = None if record.pixels is None else explain_record(trained, record, target)
    losses = list[float]()
    if explained is not None and steps:
        model, label = copy.deepcopy(trained.model), torch.tensor([explained.target])
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
        brightness = torch.tensor(explained.pixels / np.float32(255)).view(1, -1)  # [1, 784]
        for _ in range(steps):
            logits = model((brightness - trained.input_mean) / trained.input_std)
            loss = trained.objective.example_losses(logits, label).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        explained = explain_record(replace(trained, model=model), record, target)
    layers = [] if explained is None else explained.activations
    return {
        "records": [record.to_dict() for record in records],
        "lines": records.lines,
        "stages": {name: png_url(pixels) for name, pixels in records[0].stages.items()},
        "activations": [layer.astype(float).round(3).tolist() for layer in layers],
        "explanation": None if explained is None else explained.to_dict(),
        "step_losses": losses,
    }
