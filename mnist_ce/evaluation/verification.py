"""Verification of a finished run: its record against its files and against a new evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import evaluate_split, load_splits_of
from mnist_ce.runs.checkpoint import weights_sha256
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, find_run
from mnist_ce.runs.train_state import load_snapshot
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import MnistCeError, RunError
from mnist_ce.system.files import as_path

LOSS_TOLERANCE = 1e-5  # relative: the order of summation depends on threads and device
COUNT_TOLERANCE = 2  # images near a tie, on another kind of device
SECONDS_TOLERANCE = 0.001  # per epoch, whose duration is rounded

# A summary of the part; names, actual and recorded values, largest differences that are allowed.
PartResult = tuple[str, list[tuple[str, Any, Any, float]]]


@dataclass(frozen=True)
class Check:
    """The verification of one part of a run."""

    name: str
    ok: bool
    detail: str  # the main values, or the first mismatch


def verify(
    name: str,
    *,
    output: str | Path = "checkpoints",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> tuple[RunDir, list[Check]]:
    """Read all files of a finished run and evaluate its weights again, if the data is the same.

    Training losses and accuracies belong to the changing weights of an epoch, so they are only
    compared among the files. For the arguments but `name`, a run, see `evaluate`. A `RunError` if
    there is no such run, or it is not finished.
    """
    run = find_run(name, as_path(output))
    record = run.read_record()
    if record is None or not record.is_finished:
        raise RunError(f"run {run.path} is not finished, and has no results to verify")
    parts = _Parts(run, record, dataset, data_dir, resolve_device(device))
    checks = [_check(part) for part in (parts.config, parts.weights, parts.metrics, parts.resume)]
    checks.append(data := _check(parts.data))
    if data.ok and record.test_accuracy is not None:
        checks.append(_check(parts.test))
    if data.ok and ("best_epoch" in record.model_fields_set or run.best_path.exists()):
        checks.append(_check(parts.best))
    return run, checks


def _check(part: Callable[[], PartResult]) -> Check:
    name = part.__name__
    try:
        detail, figures = part()
    except MnistCeError as error:
        return Check(name, False, str(error))
    for figure, actual, recorded, tolerance in figures:
        is_near = tolerance and recorded is not None and abs(actual - recorded) <= tolerance
        if actual != recorded and not is_near:
            return Check(name, False, f"{figure} is {actual}; recorded: {recorded}")
    return Check(name, True, detail)


@dataclass(frozen=True)
class _Parts:
    """The parts of a run: each method returns a summary, and the figures that must be equal."""

    run: RunDir
    record: RunRecord
    dataset: str | None
    data_dir: str | Path | None
    device: torch.device

    @cached_property
    def trained(self) -> TrainedModel:
        return load_model(self.run.model_path)

    @cached_property
    def splits(self) -> DataSplits:
        return load_splits_of(self.trained, dataset=self.dataset, data_dir=self.data_dir)

    def config(self) -> PartResult:
        in_file = resolve_config(self.run.config_path, environment={}).flat()
        del in_file["run.name"]  # not in the file, so that it can be used for another run
        recorded = Config().flat() | self.record.flat_config  # newer keys have their defaults
        return "config.toml and run.json are equal", [
            (f"{key} in config.toml", value, recorded.get(key), 0) for key, value in in_file.items()
        ]

    def weights(self) -> PartResult:
        record, digest, mlp = self.record, self.trained.weights_sha256, self.trained.mlp
        num_outputs = {"binary": 1, "multiclass": len(record.class_names or ())}
        num_parameters = sum(parameter.numel() for parameter in mlp.parameters())
        _, *hidden, outputs = mlp.sizes
        return f"weights_sha256 {digest[:16]}…, {num_parameters:,} parameters", [
            ("weights_sha256 of model.pt", digest, record.weights_sha256, 0),
            ("model.hidden of model.pt", hidden, record.flat_config.get("model.hidden"), 0),
            ("the outputs of model.pt", outputs, num_outputs.get(record.objective or ""), 0),
            ("num_parameters of model.pt", num_parameters, record.num_parameters, 0),
        ]

    def metrics(self) -> PartResult:
        rows, record = self.run.read_metrics(), self.record
        epochs, last = [row["epoch"] for row in rows], rows[-1] if rows else {}
        seconds = sum(row.get("seconds") or 0.0 for row in rows)
        tolerance = SECONDS_TOLERANCE * (len(rows) + 1)
        keys = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        return f"{len(rows)} epoch{'s' * (len(rows) != 1)}, the last as in run.json", [
            ("the number of epochs in metrics.csv", len(rows), record.epochs_done, 0),
            ("the order of epochs in metrics.csv", epochs, list(range(1, len(rows) + 1)), 0),
            *((f"{key} in metrics.csv", last.get(key), record[key], 0) for key in keys),
            ("the seconds in metrics.csv", seconds, record.train_seconds, tolerance),
        ]

    def resume(self) -> PartResult:
        if not self.run.resume_path.exists():
            return "no resume.pt: the run cannot be extended", []
        step, state = load_snapshot(self.run, self.trained.model.state_dict())
        digest = weights_sha256(step["average"] or step["weights"])
        return "resume.pt has the weights of model.pt", [
            ("epochs in resume.pt", len(state.rows), self.record.epochs_done, 0),
            ("weights_sha256 of resume.pt", digest, self.trained.weights_sha256, 0),
        ]

    def data(self) -> PartResult:
        digest = self.splits.digest
        return f"{self.splits.dataset}, digest {digest[:16]}…", [
            ("the digest of the data", digest, self.record.dataset_digest, 0)
        ]

    def test(self) -> PartResult:
        record, num_images = self.record, len(self.splits.test.labels)
        accuracy = (record.test_correct or 0) / (record.test_total or 1)
        detail, figures = self._results(self.trained, "test", accuracy, record.test_loss)
        return detail, [
            *figures,
            ("the number of test images", num_images, record.test_total, 0),
            ("test_correct / test_total", accuracy, record.test_accuracy, 0),
        ]

    def best(self) -> PartResult:
        rows = {row["epoch"]: row for row in self.run.read_metrics()}
        epoch = self.record.best_epoch
        if epoch not in rows:
            raise RunError(f"metrics.csv has no epoch {epoch}")
        highest = max(row.get("validation_accuracy") or 0.0 for row in rows.values())
        loss = rows[epoch].get("validation_loss")
        best = load_model(self.run.best_path)
        detail, figures = self._results(best, "validation", highest, loss)
        recorded = rows[epoch].get("validation_accuracy")
        return f"epoch {epoch}: {detail}", [
            ("the highest validation_accuracy", highest, recorded, 0),
            ("the highest validation_accuracy", highest, self.record.best_validation_accuracy, 0),
            *figures,
        ]

    def _results(
        self, trained: TrainedModel, split: str, accuracy: float, loss: float | None
    ) -> PartResult:
        is_same_kind = self.device.type == (self.record.device or "").partition(":")[0]
        result = evaluate_split(trained, self.splits, split, self.device).result
        correct = round(accuracy * result.num_examples)
        return f"{result.num_correct}/{result.num_examples} right, loss {result.loss:.6f}", [
            ("correct", result.num_correct, correct, 0 if is_same_kind else COUNT_TOLERANCE),
            (f"the {split} loss", result.loss, loss, LOSS_TOLERANCE * result.loss),
        ]
