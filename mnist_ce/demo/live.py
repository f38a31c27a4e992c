"""Runs while they are trained: their curves, first-layer weights and mistakes, read from disk."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import evaluate_split, load_splits_of
from mnist_ce.evaluation.metrics import most_confident_mistakes
from mnist_ce.report.plots.images import strongest_units
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import RunRecord, RunState
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


class RunWatcher:
    """What has changed in a folder of runs since the last look.

    `names` are the runs whose curves are wanted; none for the newest that is trained, or was. Of
    the first also the weights and the mistakes.
    """

    def __init__(self, output: Path, names: Sequence[str]) -> None:
        self.output, self.names = output, tuple(names)
        self._last: dict[str, object] = {}

    def changes(self) -> Iterator[tuple[str, Any]]:
        """Yield events, each a name and plain values: `runs`, `curve`, `snapshot`."""
        runs = {run.name: (run, record) for run, record in list_runs(self.output)}
        summaries = [
            {"name": name, "state": run_state(run, record)} | {key: record[key] for key in KEYS}
            for name, (run, record) in runs.items()
        ]
        if not self.names and summaries:
            running = (one for one in summaries if one["state"] == RunState.RUNNING)
            self.names = (next(running, summaries[0])["name"],)
        self.names = tuple(name for name in self.names if name in runs)
        content = {"runs": summaries, "shown": list(self.names)}
        if self._has_changed("runs", content):
            yield "runs", content
        for name in self.names:
            run, record = runs[name]
            files = [_modified_ns(path) for path in (run.steps_path, run.metrics_path)]
            if self._has_changed(f"curve {name}", files):
                yield "curve", {"name": name, **curve(run, record)}
        for name in self.names[:1]:
            run, _ = runs[name]
            modified_ns = _modified_ns(run.model_path)  # 0 before the first epoch is done
            if self._has_changed("snapshot", (name, modified_ns)) and modified_ns:
                yield "snapshot", {"name": name, **snapshot(run)}

    def _has_changed(self, key: str, value: object) -> bool:
        last, self._last[key] = self._last.get(key), value
        return last != value


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def curve(run: RunDir, record: RunRecord) -> dict[str, Any]:
    """Return `steps` [step, loss, accuracy, learning rate] and `epochs`, by step too.

    A row of `epochs` is [step, epoch, …] with what `EPOCH_KEYS` names.
    """
    last_step, epochs = dict[int, int](), list[list[float | None]]()
    table = np.empty((0, 4))
    with contextlib.suppress(MnistCeError):
        steps = run.read_steps()
        last_step = dict(zip(steps["epoch"].tolist(), steps["step"].tolist(), strict=True))
        columns = [steps[name] for name in ("step", "loss", "accuracy", "learning_rate")]
        table = np.stack(columns, axis=1)
    batch_size = record.flat_config.get("train.batch_size") or 1
    with contextlib.suppress(MnistCeError):
        for row in run.read_metrics():
            # Runs of an earlier version have no steps.csv.
            num_images = (row.get("images_per_second") or 0) * (row.get("seconds") or 0)
            step = row["epoch"] * math.ceil(round(num_images) / batch_size)
            epochs.append([last_step.get(row["epoch"], step), *map(row.get, EPOCH_KEYS)])
    parts = np.array_split(table, min(len(table), MAX_POINTS)) if len(table) else []
    return {"steps": [part.mean(axis=0).round(6).tolist() for part in parts], "epochs": epochs}


@lru_cache(maxsize=2)
def _few_images(model_path: Path) -> tuple[str, DataSplits]:
    """Return the name of the split that a run is tested on, and splits that hold that one alone."""
    trained = load_model(model_path)
    only_test = not (trained.record and trained.record.flat_config.get("data.validation_size"))
    splits = load_splits_of(trained, offline=True, only_test=only_test)
    name = "test" if splits.validation is None else "validation"
    split = splits.split(name)
    few = split[torch.arange(min(len(split), NUM_TESTED))]  # a copy, so that the rest is freed
    return name, replace(splits, train=few, validation=few, test=few)


def snapshot(run: RunDir) -> dict[str, Any]:
    """Return the first-layer weights and the mistakes of a run's weights on disk.

    `weights` are int8 [units, 784] in base64, those of the largest norm, in fractions of `scale`.
    Whatever fails, `reason` says why there are no mistakes: the stream of curves goes on.
    """
    content: dict[str, Any] = {"mistakes": []}
    try:
        trained = load_model(run.model_path)
        weight = trained.mlp.layers[0].weight.detach().numpy()  # [units, 784]
        units, scale = strongest_units(weight, NUM_UNITS)
        whole = (units / scale * 127).clip(-127, 127).astype(np.int8)
        content |= {"weights": base64.b64encode(whole.tobytes()).decode(), "scale": scale}
        name, splits = _few_images(run.model_path)
        report = evaluate_split(trained, splits, name, torch.device("cpu"))
    except Exception as error:
        return content | {"reason": one_line(error)}
    labels, predictions = report.result.labels.numpy(), report.result.predictions.numpy()
    probabilities, names = report.probabilities.numpy(), report.class_names
    wrong = most_confident_mistakes(labels, predictions, probabilities)
    content["mistakes"] = [
        {
            "image": png_url(report.images[index].numpy()),
            "index": int(index),
            "label": names[labels[index]],
            "prediction": names[predictions[index]],
            "probability": float(probabilities[index, predictions[index]]),
        }
        for index in wrong[:NUM_MISTAKES]
    ]
    return content | {"num_wrong": len(wrong), "num_tested": len(labels), "split": name}
