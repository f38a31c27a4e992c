"""Trained networks, loaded with the meaning of their outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.runs.checkpoint import load_state_dict, model_from, weights_sha256
from mnist_ce.runs.records import PredictionSettings, RunRecord
from mnist_ce.runs.run_dir import RunDir, find_checkpoint
from mnist_ce.system.errors import CheckpointError, RunError, UsageError


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, in evaluation mode, and the meaning of its outputs."""

    model: MLP
    path: Path
    class_names: tuple[str, ...]
    """What each class means; (no, yes) for a network with one output."""
    objective: Objective
    record: RunRecord | None = field(repr=False)
    """The `run.json` beside the checkpoint."""
    weights_sha256: str
    temperature: float = 1.0
    """See `PredictionSettings`, as for `rejection_threshold`."""
    rejection_threshold: float | None = None
    input_mean: float = 0.0
    """The network's input is (pixel/255 - input_mean) / input_std."""
    input_std: float = 1.0

    @property
    def dataset(self) -> str | None:
        """The name of the dataset it was trained on; None where no record says so."""
        return self.record.dataset if self.record else None

    @property
    def reads_digits(self) -> bool:
        """Whether its inputs are digits, whatever its classes are."""
        if self.dataset is None:
            return len(self.class_names) in (2, 10)
        return self.dataset in ("mnist", "synthetic")

    @property
    def labels(self) -> tuple[int, ...]:
        """The label in its dataset of each class, such as 3 and 8 with `data.classes = [3, 8]`."""
        every = tuple(range(len(self.class_names)))
        chosen = self.record.flat_config.get("data.classes") if self.record else None
        if isinstance(self.objective, Binary) or not isinstance(chosen, list):
            return every
        fits = len(chosen) == len(every) and all(isinstance(label, int) for label in chosen)
        return tuple(chosen) if fits else every

    @property
    def label(self) -> str:
        """The run's name where the checkpoint is a run's, else its path."""
        return (self.record.name if self.record else None) or str(self.path)


def load_model(
    checkpoint: str | Path | None = None,
    output: str | Path = "checkpoints",
    *,
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> TrainedModel:
    """Load a network by path, run or name.

    Args:
        checkpoint: A file, a run's directory or name, shipped weights (`world`, or `mnist` alias
            `pretrained`), or `latest`: the newest finished multi-class run of at least ten classes
            in `output`; None: that run, or else `mnist`.
        output: The directory of the runs.
        input_mean: For a network trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.

    Raises:
        CheckpointError: If there is no such checkpoint or it does not hold such a network.
        RunError: If the record beside it is damaged.
        UsageError: If the input scale is not finite, or `input_std` is not above 0.
    """
    check_input_scale(input_mean, input_std)
    path = find_checkpoint(checkpoint, Path(output))
    state, record = load_state_dict(path), _record_beside(path)
    model = model_from(state)
    num_outputs = model.sizes[-1]
    settings = _prediction_settings(path, record)
    return TrainedModel(
        model=model,
        path=path,
        class_names=_class_names(path, num_outputs, record),
        objective=Binary() if num_outputs == 1 else Multiclass(),
        record=record,
        weights_sha256=weights_sha256(state),
        temperature=settings.temperature,
        rejection_threshold=settings.rejection_threshold,
        input_mean=input_mean,
        input_std=input_std,
    )


def check_input_scale(mean: float, std: float) -> None:
    """Raise a UsageError unless both are finite and `std` is above 0."""
    if not math.isfinite(mean):
        raise UsageError(f"--input-mean = {mean}: must be a finite number")
    if not (math.isfinite(std) and std > 0):
        raise UsageError(f"--input-std = {std}: must be a finite number above 0")


def _record_beside(path: Path) -> RunRecord | None:
    run = RunDir(path.parent)
    try:
        return run.read_record()
    except RunError:
        # Beside a file of another name, a `run.json` may be some other program's.
        if path in (run.model_path, run.best_path):
            raise
        return None


def _class_names(path: Path, num_outputs: int, record: RunRecord | None) -> tuple[str, ...]:
    num_classes = 2 if num_outputs == 1 else num_outputs
    if record is not None and "class_names" in record.model_fields_set:
        if len(record.class_names or ()) != num_classes:
            raise CheckpointError(
                f"{path} has {num_outputs} outputs, but the class_names in "
                f"{RunDir(path.parent).record_path} are not {num_classes}"
            )
        return tuple(record.class_names or ())
    return ("no", "yes") if num_outputs == 1 else tuple(map(str, range(num_outputs)))


def _prediction_settings(path: Path, record: RunRecord | None) -> PredictionSettings:
    if record is None or "prediction" not in record.model_fields_set:
        return PredictionSettings()
    try:
        return PredictionSettings.model_validate(record.prediction)
    except ValidationError as error:
        key = ".".join(("prediction", *map(str, error.errors()[0]["loc"][:1])))
        reason = "must be a number above 0" if key.endswith("temperature") else "must be a number"
        raise CheckpointError(f"{RunDir(path.parent).record_path}: {key} {reason}") from None
