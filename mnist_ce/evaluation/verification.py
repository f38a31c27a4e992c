"""Verification of a finished run: its record against its files and against a new evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import evaluate_split, load_splits_of
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import FINISHED, RunDir, find_run
from mnist_ce.runs.train_state import load_snapshot
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import MnistCeError, RunError

LOSS_TOLERANCE = 1e-5  # relative: the order of summation depends on threads and device
COUNT_TOLERANCE = 2  # images near a tie, on another kind of device
SECONDS_TOLERANCE = 0.001  # per epoch, whose duration is rounded


class MismatchError(MnistCeError):
    """A value differs from the recorded one."""


@dataclass(frozen=True)
class Check:
    """The verification of one part of a run."""

    name: str
    ok: bool
    detail: str  # the main values, or the first mismatch

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"name": self.name, "ok": self.ok, "found": self.detail}


def verify(
    name: str,
    *,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> tuple[RunDir, list[Check]]:
    """Read all files of a finished run and evaluate its weights again.

    Training losses and accuracies belong to the changing weights of an epoch, so they are only
    compared among the files. For the arguments but `name`, a run, see `evaluate`.

    Raises:
        RunError: If there is no such run, or it is not finished.
    """
    run = find_run(name, Path(output), FINISHED)
    record = run.read_record()
    if record is None or not record.is_finished:
        raise RunError(f"run {run.path} is not finished, and has no results to verify")
    load = functools.cache(lambda: load_model(run.model_path))
    checks = [
        _check("config", lambda: _config(run, record)),
        _check("weights", lambda: _weights(load(), record)),
        _check("metrics", lambda: _metrics(run, record)),
        _check("resume", lambda: _resume(run, load(), record)),
    ]
    try:
        splits = load_splits_of(load(), data_dir=data_dir)
    except MnistCeError as error:
        return run, [*checks, Check("data", False, str(error))]
    checks.append(_check("data", lambda: _data(splits, record)))
    if record.test_accuracy is not None:
        checks.append(_check("test", lambda: _test(load(), splits, record, device)))
    if "best_epoch" in record.model_fields_set or run.best_path.exists():
        checks.append(_check("best", lambda: _best(run, splits, record, device)))
    return run, checks


def _check(name: str, part: Callable[[], str]) -> Check:
    try:
        return Check(name, True, part())
    except MnistCeError as error:
        return Check(name, False, str(error))


def _require_equal(*figures: tuple[str, Any, Any, float]) -> None:
    for name, actual, recorded, tolerance in figures:
        numeric = isinstance(actual, int | float) and isinstance(recorded, int | float)
        if actual != recorded and not (numeric and abs(actual - recorded) <= tolerance):
            raise MismatchError(f"{name} is {actual}; recorded: {recorded}")


def _config(run: RunDir, record: RunRecord) -> str:
    config = resolve_config(run.config_path, environment={})
    found, defaults = config.flat(), Config().flat()
    recorded = defaults | record.flat_config  # a key newer than the run has its default
    del found["run.name"]  # not in the file, so that it can be used for another run
    _require_equal(*((f"{key} in config.toml", found[key], recorded.get(key), 0) for key in found))
    return "config.toml and run.json are equal"


def _weights(trained: TrainedModel, record: RunRecord) -> str:
    sizes = trained.mlp.sizes
    num_outputs = {"binary": 1, "multiclass": len(record.class_names or ())}
    num_parameters = sum(p.numel() for p in trained.model.parameters())
    hidden = record.flat_config.get("model.hidden")
    _require_equal(
        ("weights_sha256 of model.pt", trained.weights_sha256, record.weights_sha256, 0),
        ("model.hidden of model.pt", list(sizes[1:-1]), hidden, 0),
        ("the outputs of model.pt", sizes[-1], num_outputs.get(record.objective or ""), 0),
        ("num_parameters of model.pt", num_parameters, record.num_parameters, 0),
    )
    return f"weights_sha256 {trained.weights_sha256[:16]}…, {num_parameters:,} parameters"


def _metrics(run: RunDir, record: RunRecord) -> str:
    rows = run.read_metrics()
    num_epochs = record.epochs_done or 0
    if not rows or [row["epoch"] for row in rows] != list(range(1, num_epochs + 1)):
        raise MismatchError(f"metrics.csv has {len(rows)} epochs; recorded: {num_epochs}")
    keys = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    tolerance = SECONDS_TOLERANCE * (len(rows) + 1)
    _require_equal(
        *((f"{key} in metrics.csv", rows[-1].get(key), record[key], 0) for key in keys),
        ("the seconds in metrics.csv", seconds, record.train_seconds, tolerance),
    )
    return f"{len(rows)} epoch{'s' * (len(rows) != 1)}, the last as in run.json"


def _resume(run: RunDir, trained: TrainedModel, record: RunRecord) -> str:
    if not run.resume_path.exists():
        return "no resume.pt: the run cannot be extended"
    weights = trained.model.state_dict()
    step, state = load_snapshot(run, weights)
    _require_equal(("epochs in resume.pt", len(state.rows), record.epochs_done, 0))
    final = step["average"] or step["weights"]
    if not all((final[name] == weights[name]).all() for name in weights):
        raise MismatchError("resume.pt and model.pt have different weights")
    return "resume.pt has the weights of model.pt"


def _data(splits: DataSplits, record: RunRecord) -> str:
    _require_equal(("the digest of the data", splits.digest, record.dataset_digest, 0))
    return f"{splits.dataset}, digest {splits.digest[:16]}…"


def _test(trained: TrainedModel, splits: DataSplits, record: RunRecord, device: str) -> str:
    result = evaluate_split(trained, splits, "test", resolve_device(device)).result
    accuracy = (record.test_correct or 0) / (record.test_total or 1)
    _require_equal(
        ("the number of test images", result.num_examples, record.test_total, 0),
        ("correct", result.num_correct, record.test_correct, _count_tolerance(record, device)),
        ("the test loss", result.loss, record.test_loss, LOSS_TOLERANCE * result.loss),
        ("test_correct / test_total", accuracy, record.test_accuracy, 0),
    )
    return f"{result.num_correct}/{result.num_examples} right, loss {result.loss:.6f}"


def _best(run: RunDir, splits: DataSplits, record: RunRecord, device: str) -> str:
    rows, epoch = run.read_metrics(), record.best_epoch or 0
    if not 0 < epoch <= len(rows):
        raise MismatchError(f"metrics.csv has no epoch {record.best_epoch}")
    best = load_model(run.best_path)
    result = evaluate_split(best, splits, "validation", resolve_device(device)).result
    accuracies = [row.get("validation_accuracy") or 0.0 for row in rows]
    accuracy, loss = accuracies[epoch - 1], rows[epoch - 1].get("validation_loss")
    correct = round(accuracy * result.num_examples)
    _require_equal(
        ("the highest validation_accuracy", max(accuracies), accuracy, 0),
        ("best_validation_accuracy", accuracy, record.best_validation_accuracy, 0),
        ("correct", result.num_correct, correct, _count_tolerance(record, device)),
        ("the validation loss", result.loss, loss, LOSS_TOLERANCE * result.loss),
    )
    return f"epoch {epoch}: {result.num_correct}/{result.num_examples} right"


def _count_tolerance(record: RunRecord, device: str) -> int:
    if record.device is None:
        raise MismatchError("run.json has no device")
    is_same_kind = resolve_device(device).type == record.device.partition(":")[0]
    return 0 if is_same_kind else COUNT_TOLERANCE
