"""The training state of a run, as `resume.pt` holds it.

`resume.pt` is the commit point: it is written last, so that a crash at any time is recoverable.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnist_ce.runs.checkpoint import load_tensors, save_tensors
from mnist_ce.runs.run_dir import FORMAT_VERSION, RunDir
from mnist_ce.system.errors import RunError
from mnist_ce.system.files import one_line

__all__ = ["EpochMetrics", "MetricSums", "Snapshot", "TrainState", "load_snapshot"]

_PLAIN = (torch.float32, torch.strided)

EpochMetrics = dict[str, Any]


@dataclass
class MetricSums:
    """Sums over the examples seen since the epoch began."""

    loss_sum: float = 0.0
    num_correct: int = 0
    num_examples: int = 0

    @property
    def loss(self) -> float:
        """The mean loss per example."""
        return self.loss_sum / max(self.num_examples, 1)

    @property
    def accuracy(self) -> float:
        """The fraction of examples answered correctly when they were trained on."""
        return self.num_correct / max(self.num_examples, 1)


@dataclass
class TrainState:
    """How far a run has come. With the step's state this is all that continuing needs."""

    epoch: int = 1
    batch: int = 0  # batches done in this epoch
    totals: MetricSums = field(default_factory=MetricSums)
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # of whole epochs
    wall_seconds: float = 0.0  # with loading, testing and saving
    rows: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_row(self) -> EpochMetrics | None:
        """The epoch of the best validation result so far."""
        return self.rows[self.best_epoch - 1] if self.best_epoch else None

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values, which nothing changes later."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, values: Any) -> TrainState:  # noqa: ANN401 - whatever a file holds
        """Return what `to_plain` was made from.

        Raises:
            ValueError: If the values are not of that form.
        """
        try:
            if not isinstance(values, dict) or not isinstance(values["totals"], dict):
                raise TypeError("no table")
            progress = cls(**{**values, "totals": MetricSums(**values["totals"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"its progress is not of this program ({error})") from None
        counts = [progress.epoch, progress.batch, progress.best_epoch]
        counts += [progress.totals.num_correct, progress.totals.num_examples]
        seconds = [progress.epoch_seconds, progress.train_seconds, progress.wall_seconds]
        is_whole = (
            all(isinstance(count, int) and count >= 0 for count in counts)
            and all(isinstance(value, float) for value in [*seconds, progress.totals.loss_sum])
            and isinstance(progress.rows, list)
            and all(map(_is_row, progress.rows))
            and progress.epoch == len(progress.rows) + 1
            and progress.best_epoch < progress.epoch
            and (not progress.best_epoch or "validation_loss" in (progress.best_row or {}))
        )
        if not is_whole:
            raise ValueError("its progress is not of this program")
        return progress


def _is_row(row: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(row, dict)
        and {"epoch", "train_loss", "seconds"} <= row.keys()
        and ("validation_loss" in row) == ("validation_accuracy" in row)
        and all(isinstance(value, int | float) for value in row.values())
    )


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, in copies that training does not change.

    Args:
        state: What `Step.state` returned.
        progress: What `Progress.to_plain` returned.
        weights: For `model.pt`, by name, on the CPU; None within an epoch.
        best: For `best.pt`, where an epoch was better than the ones before; else None.
        has_new_rows: Whether `metrics.csv` is to be written.
    """

    state: dict[str, Any]
    progress: dict[str, Any]
    weights: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None
    has_new_rows: bool = False

    def write(self, run: RunDir) -> None:
        """Write it, `resume.pt` last.

        Raises:
            OSError: If a file cannot be written; each is the old one or the new one, whole.
        """
        if self.best is not None:
            save_tensors(run.best_path, self.best)
        if self.weights is not None:
            save_tensors(run.model_path, self.weights)
        if self.has_new_rows:
            run.write_metrics(self.progress["rows"])
        content = {
            "format_version": FORMAT_VERSION,
            "step": self.state,
            "progress": self.progress,
        }
        save_tensors(run.resume_path, content)


def load_snapshot(run: RunDir, weights: dict[str, Tensor]) -> tuple[dict[str, Any], TrainState]:
    """Read `resume.pt`.

    Args:
        run: Where it lies.
        weights: The network's weights, whose names and shapes the saved ones must have.

    Returns:
        What `Step.load_state` takes, and the progress.

    Raises:
        CheckpointError: If the file is damaged.
        RunError: If it does not belong to this run.
    """
    content = load_tensors(run.resume_path)
    try:
        if not isinstance(content, dict) or not isinstance(content["step"], dict):
            raise TypeError("it is not a table")
        state, version = content["step"], content["format_version"]
        if not isinstance(version, int) or version != FORMAT_VERSION:
            raise ValueError(f"format_version {version!r}")
        if not isinstance(state["num_steps"], int):
            raise ValueError("num_steps is not a number")
        for part in ("weights", "momentum", "average"):
            _check(part, state[part], weights, may_be_empty=part != "weights")
        return state, TrainState.from_plain(content["progress"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run.resume_path} does not belong to this run: {one_line(error)}"
        ) from None


def _check(part: str, found: Any, expected: dict[str, Tensor], *, may_be_empty: bool) -> None:  # noqa: ANN401
    """Check names and shapes before anything is copied: a file may promise any size."""
    if not isinstance(found, dict):
        raise TypeError(f"its {part} are not a table")
    if not found and may_be_empty:
        return
    if set(found) != set(expected):
        raise ValueError(f"its {part} are of another network")
    for name, tensor in expected.items():
        value = found[name]
        if not isinstance(value, Tensor) or (value.dtype, value.layout) != _PLAIN:
            raise ValueError(f"{name} in its {part} is not a plain tensor of float32")
        if value.shape != tensor.shape or not value.is_contiguous():
            raise ValueError(f"{name} in its {part} has another shape")
