"""The training state of a run, as `resume.pt` holds it.

`resume.pt` is the commit point: it is written last, so that a crash at any time is recoverable.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal, Required, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
    with_config,
)
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from mnist_ce.runs.checkpoint import load_tensors, save_tensors
from mnist_ce.runs.records import FORMAT_VERSION
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError
from mnist_ce.system.text import first_problem, one_line


@with_config(ConfigDict(strict=True))
class EpochMetrics(TypedDict, total=False):
    """A row of `metrics.csv`; what was not measured is missing."""

    epoch: Required[int]
    train_loss: Required[float]
    train_accuracy: float
    learning_rate: float
    seconds: Required[float]
    images_per_second: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    test_correct: int
    test_total: int


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Sums over the examples of an epoch, from which its loss and accuracy are made."""

    loss_sum: StrictFloat = 0.0
    num_correct: StrictInt = 0
    num_examples: StrictInt = 0

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.num_examples, 1)

    @property
    def accuracy(self) -> float:
        return self.num_correct / max(self.num_examples, 1)

    def __add__(self, other: MetricSums) -> MetricSums:
        return MetricSums(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, earlier: MetricSums) -> MetricSums:
        return MetricSums(*map(operator.sub, astuple(self), astuple(earlier)))


class TrainState(BaseModel, extra="forbid"):
    """The position of a run in its epochs. With the step's state it is all that resuming needs."""

    epoch: StrictInt = Field(default=1, ge=1)
    """The epoch to be trained next, or that is being trained."""
    batch: StrictInt = Field(default=0, ge=0)
    """Batches done in this epoch."""
    totals: MetricSums = Field(default_factory=MetricSums)
    logged: MetricSums = Field(default_factory=MetricSums)
    """The totals at this epoch's last row of `steps.csv`."""
    epoch_seconds: StrictFloat = 0.0
    train_seconds: StrictFloat = 0.0
    """Of whole epochs."""
    wall_seconds: StrictFloat = 0.0
    """With loading, testing and saving."""
    rows: list[EpochMetrics] = Field(default_factory=list)
    best_epoch: StrictInt = Field(default=0, ge=0)
    """The epoch of the best validation result; 0: none yet."""

    @field_validator("rows", mode="before")
    @classmethod
    def _rows_of_text(cls, rows: Any) -> Any:  # noqa: ANN401
        return json.loads(rows) if isinstance(rows, str) else rows  # a list: of an older version

    @property
    def best_row(self) -> EpochMetrics | None:
        return self.rows[self.best_epoch - 1] if self.best_epoch else None

    def is_over(self, num_epochs: int, patience: int) -> bool:
        """Whether the last epoch is done, or none within `patience` was the best (0: no limit)."""
        is_out_of_patience = 0 < patience <= len(self.rows) - self.best_epoch
        return self.epoch > num_epochs or is_out_of_patience

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        best = self.rows[self.best_epoch - 1 : self.best_epoch]
        if self.epoch != len(self.rows) + 1 or len(best) != bool(self.best_epoch):
            raise ValueError("epoch, rows and best_epoch do not fit together")
        if any(("validation_loss" in row) != ("validation_accuracy" in row) for row in self.rows):
            raise ValueError("a row has half of a validation result")
        if any("validation_loss" not in row for row in best):
            raise ValueError("the best epoch has no validation result")
        return self


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, in copies that training does not change.

    `weights` (for `model.pt`, on the CPU) are None within an epoch, `best` (for `best.pt`) except
    where an epoch was better than all before.
    """

    step: dict[str, Any]  # `Step.state()`
    train_state: dict[str, Any]  # `TrainState.model_dump()`
    definition: dict[str, Any]  # of the run, see `definition`: no other run goes on from it
    weights: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None

    def write(self, run: RunDir) -> None:
        """Write the files, `resume.pt` last; after an OSError each is the old or the new one."""
        if self.best is not None:
            save_tensors(run.best_path, self.best)
        if self.weights is not None:
            save_tensors(run.model_path, self.weights)
        if self.train_state["rows"]:
            run.write_metrics(self.train_state["rows"])
        content = {"format_version": FORMAT_VERSION, "definition": self.definition}
        # Text, since torch takes 4 s to read the objects of 60,000 rows.
        rows = {"rows": json.dumps(self.train_state["rows"])}
        content |= {"step": self.step, "train_state": self.train_state | rows}
        save_tensors(run.resume_path, content)


class _StepState(BaseModel, arbitrary_types_allowed=True):
    """`Step.state()`, as far as all steps have it."""

    num_steps: StrictInt
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    average: dict[str, Tensor]
    buffers: dict[str, Tensor] = Field(default_factory=dict)


class _ResumeFile(BaseModel):
    format_version: Literal[1]
    step: _StepState
    train_state: TrainState = Field(validation_alias=AliasChoices("train_state", "progress"))
    """`progress` is the older name."""
    definition: dict[str, Any] = Field(default_factory=dict)
    """Empty in the files of older versions."""


def load_snapshot(
    run: RunDir,
    weights: dict[str, Tensor],
    buffers: dict[str, Tensor] | None = None,
    definition: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], TrainState]:
    """Read `resume.pt`: the argument of `Step.load_state`, and the train state.

    The saved tensors must have the names and shapes of `weights` and `buffers`, and the definition
    of the run that saved them the values of `definition`: else a RunError.
    """
    content = load_tensors(run.resume_path)
    try:
        file = _ResumeFile.model_validate(content)
        for key, value in (definition or {}).items():
            if (saved := file.definition.get(key, value)) != value:
                raise ValueError(f"{key} is {saved} there and {value} here")
        parts = {"momentum": weights, "average": weights, "weights": weights}
        for part, expected in (parts | {"buffers": buffers or {}}).items():
            tensors = getattr(file.step, part)
            if (tensors or part in ("weights", "buffers")) and _kinds(tensors) != _kinds(expected):
                raise ValueError(f"its {part} are of another network")
        return content["step"], file.train_state
    except ValidationError as error:
        reason = first_problem(error)
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
    raise RunError(f"{run.resume_path} does not belong to this run: {reason}")


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (t.dtype, t.layout, t.shape) for name, t in tensors.items()}
