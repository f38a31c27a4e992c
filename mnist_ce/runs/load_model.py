"""A trained network with what its outputs mean, read from a checkpoint and its record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.runs.checkpoint import load_state_dict, model_from, weights_sha256
from mnist_ce.runs.run_dir import RunDir, find_checkpoint
from mnist_ce.system.errors import CheckpointError, RunError, UsageError

__all__ = ["TrainedModel", "check_input_scale", "load_model"]

DIGITS = tuple("0123456789")
DIGIT_DATASETS = ("mnist", "synthetic")


@dataclass(frozen=True)
class TrainedModel:
    """A network ready to be asked, and how to read its answers.

    Args:
        model: The network, in evaluation mode.
        path: The checkpoint it came from.
        class_names: What each class means; [no, yes] for a network with one output.
        objective: How logits become answers.
        dataset: The name of the dataset it was trained on; None where no record says so.
        record: The `run.json` beside the checkpoint; empty where there is none.
        weights_sha256: The digest of the weights.
        temperature: What logits are divided by before they become probabilities (Guo et al.
            2017); 1 where none was fitted.
    """

    model: MLP
    path: Path
    class_names: tuple[str, ...]
    objective: Objective
    dataset: str | None
    record: dict[str, Any] = field(repr=False)
    weights_sha256: str
    temperature: float = 1.0

    @property
    def reads_digits(self) -> bool:
        """Whether its inputs are digits, whatever the question about them is."""
        return self.dataset in DIGIT_DATASETS or (
            self.dataset is None and len(self.class_names) in (2, 10)
        )

    @property
    def rejection_threshold(self) -> float | None:
        """The lowest score of a digit, where its record names one; None: the detector's own.

        Raises:
            CheckpointError: If what the record names is no number.
        """
        settings = self.record.get("prediction") or {}
        if "rejection_threshold" not in settings:
            return None
        value = settings["rejection_threshold"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(
                f"{RunDir(self.path.parent).record_path}: prediction.rejection_threshold "
                "must be a number"
            )
        return float(value)

    @property
    def label(self) -> str:
        """What to call the checkpoint: the run's name where it is a run's, else its path."""
        return str(self.record.get("name") or self.path)


def load_model(
    checkpoint: str | Path | None = None, output: str | Path = "checkpoints"
) -> TrainedModel:
    """Load a network by path, run or name.

    Args:
        checkpoint: A file, a run's folder or name, or `pretrained`; None: the newest finished
            multi-class run in `output`, or else the shipped weights.
        output: The folder that holds the runs.

    Raises:
        CheckpointError: If there is no such checkpoint or it does not hold such a network.
        RunError: If the record beside it is damaged.
    """
    path = find_checkpoint(checkpoint, Path(output))
    state = load_state_dict(path)
    model = model_from(state)
    record = _record_beside(path)
    num_outputs = model.sizes[-1]
    class_names = _class_names(path, num_outputs, record)
    return TrainedModel(
        model=model,
        path=path,
        class_names=class_names,
        objective=Binary() if num_outputs == 1 else Multiclass(),
        dataset=record.get("dataset"),
        record=record,
        weights_sha256=weights_sha256(state),
        temperature=_temperature(path, record),
    )


def check_input_scale(mean: float, std: float) -> None:
    """Check what a network's input is shifted and divided by: (pixel/255 - mean) / std.

    Raises:
        UsageError: If one is not finite, or `std` is not above 0.
    """
    if not math.isfinite(mean):
        raise UsageError(f"--input-mean = {mean}: must be a finite number")
    if not (math.isfinite(std) and std > 0):
        raise UsageError(f"--input-std = {std}: must be a finite number above 0")


def _record_beside(path: Path) -> dict[str, Any]:
    """Return the record of the run that a checkpoint is of, empty where there is none.

    Beside another file than a run's own, a `run.json` that is no record is some other program's.
    """
    run = RunDir(path.parent)
    try:
        return run.read_record() or {}
    except RunError:
        if path in (run.model_path, run.best_path):
            raise
        return {}


def _class_names(path: Path, num_outputs: int, record: dict[str, Any]) -> tuple[str, ...]:
    num_classes = 2 if num_outputs == 1 else num_outputs
    if "class_names" in record:
        names = record["class_names"]
        if not isinstance(names, list) or len(names) != num_classes:
            raise CheckpointError(
                f"{path} has {num_outputs} outputs, but the class_names in "
                f"{RunDir(path.parent).record_path} are not {num_classes}"
            )
        return tuple(map(str, names))
    if num_outputs == 1:
        return ("no", "yes")
    return DIGITS if num_outputs == 10 else tuple(map(str, range(num_outputs)))


def _temperature(path: Path, record: dict[str, Any]) -> float:
    settings = record.get("prediction", {})
    value = settings.get("temperature", 1.0) if isinstance(settings, dict) else None
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(
            f"{RunDir(path.parent).record_path}: prediction.temperature must be a number above 0"
        )
    return float(value)
