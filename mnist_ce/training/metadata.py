"""The metadata of a run: its environment, its origin and its final metrics."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from mnist_ce.config import Config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.runs.records import FORMAT_VERSION, RESULTS, RunRecord, RunState
from mnist_ce.runs.train_state import TrainState
from mnist_ce.system.device import device_name, environment
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.files import repository_root

# What the bytes of the weights depend on beside the config.
_ENVIRONMENT = ("device", "processes", "step", "versions")
_FINAL_METRICS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "test_correct", "test_total"),
)


def run_metadata(
    config: Config,
    recipe: str,
    splits: DataSplits,
    model: nn.Module,
    device: torch.device,
    step: str,
) -> RunRecord:
    """Return the record of a run that begins now."""
    return RunRecord(
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
        device=device_name(device),
        threads=torch.get_num_threads(),
        processes=num_processes(),
        step=step,
        seed=config.train.seed,
        command=sys.argv,
        git_commit=git_commit(),
        epochs=config.train.epochs,
        num_parameters=sum(p.numel() for p in model.parameters()),
        config=config.to_dict(),
        process={"id": os.getpid(), "host": socket.gethostname()},
    )


def merge_resumed(before: RunRecord, now: RunRecord) -> RunRecord:
    """Return the record of a run that is resumed.

    Name, recipe, creation, command and commit stay those that began it; the results of an earlier
    end are dropped.
    """
    kept = {key: value for key, value in before.to_dict().items() if key not in RESULTS}
    origin = ("name", "recipe", "created", "command", "git_commit")
    first = {key: kept[key] for key in origin if key in kept}
    return RunRecord.model_validate(kept | now.to_dict() | first)


def environment_diff(before: RunRecord, now: RunRecord) -> list[str]:
    """Return what has changed since the run began, of all that its bytes depend on."""
    return [
        f"{key} {_change(before[key], now[key])}"
        for key in (*_ENVIRONMENT, *(() if now.step == "fast" else ("threads",)))
        if key in before.model_fields_set and before[key] != now[key]
    ]


def _change(before: Any, now: Any) -> str:  # noqa: ANN401
    if not isinstance(before, dict):
        return f"{before} → {now}"
    return ", ".join(
        f"{key} {before.get(key)} → {value}"
        for key, value in now.items()
        if before.get(key) != value
    )


def final_metrics(state: TrainState, weights_sha256: str) -> dict[str, Any]:
    """Return what a run measured: the metrics of its last epoch, and which epoch was the best."""
    found = {
        "epochs_done": len(state.rows),
        "train_seconds": round(state.train_seconds, 3),
        "wall_seconds": round(state.wall_seconds, 3),
        "weights_sha256": weights_sha256,
        **{key: state.rows[-1].get(key) for key in _FINAL_METRICS},
    }
    if state.best_row is not None:
        found["best_epoch"] = state.best_epoch
        found["best_validation_accuracy"] = state.best_row["validation_accuracy"]
    return found


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
