"""Evaluation: what a trained network gets right and wrong on a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.dataset import DataSplits, load_splits
from mnist_ce.evaluation.calibration import (
    NUM_BINS,
    CalibrationReport,
    calibration_report,
)
from mnist_ce.evaluation.inference import Evaluation
from mnist_ce.evaluation.inference import evaluate as run_loop
from mnist_ce.evaluation.metrics import (
    BinaryReport,
    ClassReport,
    binary_report,
    class_reports,
    confusion_matrix,
    wilson_interval,
)
from mnist_ce.network.objective import Binary
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import UsageError

__all__ = ["EvaluationReport", "evaluate", "load_splits_of"]


@dataclass(frozen=True)
class EvaluationReport:
    """A network's results on one split of one dataset.

    Args:
        trained: The network.
        dataset: The dataset's name.
        split: `train`, `validation` or `test`.
        class_names: What the labels mean.
        result: Logits, labels, predictions and loss.
        images: The split's images, uint8 [n, 28, 28].
    """

    trained: TrainedModel
    dataset: str
    split: str
    class_names: tuple[str, ...]
    result: Evaluation
    images: Any

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(self.result.num_correct, self.result.num_examples)

    @property
    def confusion(self) -> list[list[int]]:
        """Counts: row = true class, column = answer."""
        matrix = confusion_matrix(
            self.result.predictions, self.result.labels, len(self.class_names)
        )
        rows: list[list[int]] = matrix.tolist()
        return rows

    @property
    def per_class(self) -> list[ClassReport]:
        """Precision, recall, F1 and count of each class."""
        matrix = confusion_matrix(
            self.result.predictions, self.result.labels, len(self.class_names)
        )
        return class_reports(matrix, self.class_names)

    @cached_property
    def calibration(self) -> CalibrationReport:
        """How far the probabilities can be trusted, at the temperature that `predict` uses."""
        return self._calibration(self.trained.temperature)

    @cached_property
    def uncalibrated(self) -> CalibrationReport:
        """The same without a temperature."""
        return self.calibration if self.trained.temperature == 1 else self._calibration(1.0)

    def _calibration(self, temperature: float) -> CalibrationReport:
        return calibration_report(
            self.result.logits, self.result.labels, self.trained.objective, temperature
        )

    @property
    def binary(self) -> BinaryReport | None:
        """The yes/no figures; None for a network of several classes."""
        if not isinstance(self.trained.objective, Binary):
            return None
        result = self.result
        return binary_report(result.logits[:, 0], result.predictions, result.labels)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: fractions, not percent."""
        before = self.uncalibrated.to_dict()
        content: dict[str, Any] = {
            "loss": self.result.loss,
            "correct": self.result.num_correct,
            "total": self.result.num_examples,
            "accuracy": self.result.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "per_class": [report.to_dict() for report in self.per_class],
            "confusion_matrix": self.confusion,
            "calibration": {
                "temperature": self.trained.temperature,
                "num_bins": NUM_BINS,
                **self.calibration.to_dict(),
                **{f"{key}_uncalibrated": before[key] for key in ("nll", "ece", "ece_interval")},
            },
            "dataset": self.dataset,
            "split": self.split,
            "checkpoint": str(self.trained.path),
            "weights_sha256": self.trained.weights_sha256,
        }
        if self.binary is not None:
            content["binary"] = self.binary.to_dict()
        return content


def evaluate(
    checkpoint: str | Path | TrainedModel | None = None,
    *,
    split: str = "test",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    device: str = "auto",
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> EvaluationReport:
    """Evaluate a network on the dataset it was trained on.

    Args:
        checkpoint: See `load_model`.
        split: `train`, `validation` or `test`.
        dataset: Another dataset than the run's own; weights without a record are taken to be of
            MNIST.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        output: The folder that holds the runs.
        device: See `resolve_device`.
        input_mean: For networks trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.

    Raises:
        CheckpointError: If the network cannot be loaded.
        DataError: If the data cannot be had.
        UsageError: If the split or dataset does not fit the network, or the input's
            scale makes no sense.
    """
    if isinstance(checkpoint, TrainedModel):
        trained = checkpoint
    else:
        trained = load_model(checkpoint, output, input_mean=input_mean, input_std=input_std)
    torch_device = resolve_device(device)
    task = load_splits_of(trained, dataset=dataset, data_dir=data_dir)
    chosen = task.split(split)
    model = trained.model.to(torch_device)
    result = run_loop(
        model,
        chosen.images.to(torch_device),
        chosen.labels,
        trained.objective,
        mean=trained.input_mean,
        std=trained.input_std,
    )
    return EvaluationReport(trained, task.dataset, split, task.class_names, result, chosen.images)


def load_splits_of(
    trained: TrainedModel,
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
) -> DataSplits:
    """Load the data that a network was trained on, split as it was then.

    Raises:
        DataError: If the data cannot be had; no other dataset takes its place.
        UsageError: If the dataset's classes are not the network's.
    """
    config = _config_of(trained)
    data = config.data.model_copy(
        update={
            "dataset": dataset or trained.dataset or "mnist",
            "dir": str(data_dir) if data_dir is not None else resolve_config().data.dir,
        }
    )
    kind = "binary" if isinstance(trained.objective, Binary) else "multiclass"
    objective = config.objective.model_copy(update={"kind": kind})
    task = load_splits(data, objective, config.train.seed)
    if len(task.class_names) != len(trained.class_names):
        raise UsageError(
            f"{trained.path} knows {len(trained.class_names)} classes, but {task.dataset} has "
            f"{len(task.class_names)}"
        )
    return replace(task, objective=trained.objective)


def _config_of(trained: TrainedModel) -> Config:
    path = trained.path.parent / "config.toml"
    return resolve_config(path, environment={}) if trained.record and path.is_file() else Config()
