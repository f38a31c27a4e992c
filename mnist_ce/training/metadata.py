"""What `run.json` says of a run: what it is made from, and what came out."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import torch

from mnist_ce.config import Config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.network.model import MLP
from mnist_ce.runs.run_folder import git_commit
from mnist_ce.runs.train_state import TrainState
from mnist_ce.system.device import device_name, environment
from mnist_ce.system.distributed import num_processes

__all__ = ["changes", "continued", "description", "results"]

_FINAL_KEYS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "test_correct",
    "test_total",
)
_RESULTS = (
    *("epochs_done", "train_seconds", "wall_seconds", "weights_sha256"),
    *_FINAL_KEYS,
    *("best_epoch", "best_validation_accuracy", "prediction"),
)
# What the bytes of the weights depend on beside the config.
_CIRCUMSTANCES = ("device", "threads", "processes", "step", "versions")


def description(
    config: Config, task: DataSplits, model: MLP, device: torch.device, step: str, num_epochs: int
) -> dict[str, Any]:
    """Return what a run is made from, and who makes it."""
    return {
        "dataset": task.dataset,
        "dataset_digest": task.digest,
        "class_names": list(task.class_names),
        "objective": config.objective.kind,
        "versions": environment(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
        "step": step,
        "seed": config.train.seed,
        "command": sys.argv,
        "git_commit": git_commit(),
        "epochs": num_epochs,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "config": config.to_dict(),
        "process": {"id": os.getpid(), "host": socket.gethostname()},
    }


def continued(record: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that is taken up again.

    The command and commit stay those that began it; the results of an earlier end are dropped.
    """
    kept = {key: value for key, value in record.items() if key not in _RESULTS}
    return kept | now | {key: kept[key] for key in ("command", "git_commit") if key in kept}


def changes(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what is not as it was when the run began, of all that its bytes depend on."""
    return [
        f"{key} {_shown(record[key], now[key])}"
        for key in _CIRCUMSTANCES
        if key in record and record[key] != now[key]
    ]


def _shown(before: Any, now: Any) -> str:  # noqa: ANN401
    if not isinstance(before, dict):
        return f"{before} → {now}"
    return ", ".join(
        f"{key} {before.get(key)} → {value}"
        for key, value in now.items()
        if before.get(key) != value
    )


def results(progress: TrainState, weights_sha256: str) -> dict[str, Any]:
    """Return what came out of a run: that of its last epoch, and which was the best."""
    rows, best = progress.rows, progress.best_row
    found = {
        "epochs_done": len(rows),
        "train_seconds": round(progress.train_seconds, 3),
        "wall_seconds": round(progress.wall_seconds, 3),
        "weights_sha256": weights_sha256,
        **{key: rows[-1].get(key) for key in _FINAL_KEYS},
    }
    if best is not None:
        found["best_epoch"] = progress.best_epoch
        found["best_validation_accuracy"] = best["validation_accuracy"]
    return found
