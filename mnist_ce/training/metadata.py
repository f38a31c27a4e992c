"""The metadata of a run: its environment, its origin and its final metrics."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from mnist_ce.config import Config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.runs.records import FORMAT_VERSION, RESULTS, RunRecord, RunState
from mnist_ce.runs.train_state import TrainState
from mnist_ce.system.device import device_name, environment
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.files import repository_root
from mnist_ce.training.steps import Step

_FINAL_METRICS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "test_correct", "test_total"),
)


def run_metadata(
    config: Config,
    recipe: str,
    splits: DataSplits,
    step: Step,
    custom_names: dict[str, str],
    initial: TrainedModel | None,
) -> RunRecord:
    """Return the record of a run that begins now."""
    record = RunRecord(
        format_version=FORMAT_VERSION,
        recipe=recipe,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status=RunState.RUNNING,
        dataset=splits.dataset,
        dataset_digest=splits.digest,
        dataset_split=splits.split_note,
        class_names=list(splits.class_names),
        objective=config.objective.kind,
        versions=environment(),
        device=device_name(step.loader.device),
        threads=torch.get_num_threads(),
        processes=num_processes(),
        step=step.kind,
        seed=config.train.seed,
        command=sys.argv,
        git_commit=git_commit(),
        epochs=config.train.epochs,
        num_parameters=sum(p.numel() for p in step.model.parameters()),
        config=config.to_dict(),
        process={"id": os.getpid(), "host": socket.gethostname()},
    )
    if custom_names:
        record = record.updated(custom=custom_names)
    if initial is not None:
        source, digest = config.train.init or str(initial.path), initial.weights_sha256
        record = record.updated(init={"checkpoint": source, "weights_sha256": digest})
    return record


def config_tables(config: Config) -> dict[str, Any]:
    """Return the config without the run's name, so that feeding it back makes a new run."""
    tables = config.to_dict()
    del tables["run"]["name"]
    return tables


def merge_resumed(before: RunRecord, now: RunRecord) -> RunRecord:
    """Return the record of a run that is resumed: `now`, with its origin and what else it had.

    The results of an earlier end are dropped.
    """
    origin = ("name", "recipe", "created", "command", "git_commit", "init")
    kept = {
        key: value
        for key, value in before.to_dict().items()
        if key in origin or key not in (*RESULTS, *now.model_fields_set)
    }
    return now.updated(**kept)


def environment_diff(before: RunRecord, now: RunRecord) -> list[str]:
    """Return what has changed since the run began, of all that its bytes depend on."""

    def relevant(record: RunRecord) -> dict[str, Any]:
        keys = ("device", "processes", "step", *(() if now.step == "fast" else ("threads",)))
        return {key: record[key] for key in keys} | (record.versions or {})

    old, new = relevant(before), relevant(now)
    return [
        f"{key} {old[key]} → {value}"
        for key, value in new.items()
        if old.get(key) not in (None, value)
    ]


def final_metrics(state: TrainState, weights_sha256: str) -> dict[str, Any]:
    """Return what a run measured: the metrics of its last epoch, and which epoch was the best."""
    last_row: Mapping[str, Any] = state.rows[-1]
    metrics = {
        "epochs_done": len(state.rows),
        "train_seconds": round(state.train_seconds, 3),
        "wall_seconds": round(state.wall_seconds, 3),
        "weights_sha256": weights_sha256,
        **{key: last_row.get(key) for key in _FINAL_METRICS},
    }
    if state.best_row is not None:
        metrics["best_epoch"] = state.best_epoch
        metrics["best_validation_accuracy"] = state.best_row["validation_accuracy"]
    return metrics


def git_commit() -> str | None:
    """Return the commit of the git checkout that the program runs from, if it does."""
    root = repository_root()
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
