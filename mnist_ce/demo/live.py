"""Runs while they are trained: their curves, first-layer weights and mistakes, read from disk."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ce.data.dataset import DataSplits
from mnist_ce.demo.inference import load_cached
from mnist_ce.evaluation.evaluate import evaluate_split, load_splits_of
from mnist_ce.report.plots.images import strongest_units
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import RunState
from mnist_ce.runs.run_dir import RunDir, list_runs, run_state
from mnist_ce.system.errors import MnistCeError
from mnist_ce.system.notebook import png_url
from mnist_ce.system.text import one_line

MAX_POINTS = 1000  # of a curve; each is a mean over rows where there are more
NUM_UNITS, NUM_MISTAKES = 24, 16
# Of a record, for the list.
KEYS = ("dataset", "recipe", "epochs", "created", "class_names", "test_accuracy")
_MEASURES = "train_loss validation_accuracy test_accuracy validation_loss test_loss train_accuracy"
EPOCH_KEYS = ("epoch", *_MEASURES.split(), "seconds")
NUM_TESTED = 1000  # images: all would take time from the training
RETRY_SECONDS = 60.0  # after which data that was missing may be there


def runs_now(output: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return `runs`, which are `shown`, the `curves` of those, and a `snapshot` of the first.

    Without `names` the newest that is trained, or was, is shown.
    """
    runs = {run.name: (run, record) for run, record in list_runs(output)}
    summaries = [
        {"name": name, "state": run_state(run, record)} | {key: record[key] for key in KEYS}
        for name, (run, record) in runs.items()
    ]
    running = (one["name"] for one in summaries if one["state"] == RunState.RUNNING)
    shown = [name for name in names or [next(running, next(iter(runs), ""))] if name in runs]
    content: dict[str, Any] = {"runs": summaries, "shown": shown, "curves": [], "snapshot": None}
    for name in shown:
        run, _ = runs[name]
        modified = tuple(map(_modified_ns, (run.steps_path, run.metrics_path)))
        content["curves"].append({"name": name, **curve(run.path, modified)})
        is_trained = _modified_ns(run.model_path)  # 0 before the first epoch is done
        if is_trained and name == shown[0]:
            weights = (run.model_path, is_trained, time.monotonic() // RETRY_SECONDS)
            content["snapshot"] = {"name": name, **snapshot(*weights)}
    return content


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=16)
def curve(path: Path, _: tuple[int, ...]) -> dict[str, Any]:
    """Return `steps` [step, loss, accuracy, learning rate] and `epochs`, by step too.

    A row of `epochs` is [step, epoch, …] with what `EPOCH_KEYS` names.
    """
    run, steps, epochs = RunDir(path), list[list[float]](), list[list[Any]]()
    last_step = dict[int, int]()
    with contextlib.suppress(MnistCeError):
        rows = run.read_steps()
        last_step = dict(zip(rows["epoch"].tolist(), rows["step"].tolist(), strict=True))
        columns = [rows[name] for name in ("step", "loss", "accuracy", "learning_rate")]
        parts = np.array_split(np.stack(columns, axis=1), max(1, min(len(rows), MAX_POINTS)))
        steps = [part.mean(axis=0).round(6).tolist() for part in parts if len(part)]
    with contextlib.suppress(MnistCeError):
        for row in run.read_metrics():
            step = last_step.get(row["epoch"], row["epoch"])
            epochs.append([step, *map(row.get, EPOCH_KEYS)])
    return {"steps": steps, "epochs": epochs}


@lru_cache(maxsize=2)
def _few_images(path: Path) -> tuple[str, DataSplits]:
    """Return the split that a run is tested on: the test split where another has to be drawn."""
    trained = load_model(path)
    config = trained.record.flat_config if trained.record else {}
    only_test = not config.get("data.validation_size") or bool(config.get("data.num_synthetic"))
    splits = load_splits_of(trained, offline=True, only_test=only_test)
    name = "test" if splits.validation is None else "validation"
    split = splits.split(name)
    few = split[torch.arange(min(len(split), NUM_TESTED))]  # a copy, so that the rest is freed
    return name, replace(splits, train=few, validation=few, test=few)


@lru_cache(maxsize=4)
def snapshot(path: Path, modified_ns: int, _: float) -> dict[str, Any]:
    """Return the mistakes of a run's weights on disk, or the `reason` why there are none.

    `weights` are int8 [units, 784] in base64, those of the largest norm, in fractions of `scale`.
    """
    content: dict[str, Any] = {"mistakes": []}
    try:
        trained = load_cached(path, modified_ns)
        weight = trained.mlp.layers[0].weight.detach().numpy()  # [units, 784]
        units, scale = strongest_units(weight, NUM_UNITS)
        whole = (units / scale * 127).clip(-127, 127).astype(np.int8)
        content |= {"weights": base64.b64encode(whole.tobytes()).decode(), "scale": scale}
        name, splits = _few_images(path)
        report = evaluate_split(trained, splits, name, torch.device("cpu"))
    except Exception as error:
        return content | {"reason": one_line(error)}
    content["mistakes"] = [
        {
            "image": png_url(report.images[index].numpy()),
            "index": index,
            **report.reading(index)._asdict(),
        }
        for index in report.mistakes[:NUM_MISTAKES]
    ]
    num_tested = report.result.num_examples
    return content | {"num_wrong": len(report.mistakes), "num_tested": num_tested, "split": name}
