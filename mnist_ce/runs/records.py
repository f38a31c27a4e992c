"""The record of a run, `run.json`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from mnist_ce.config import RENAMED_KEYS, flatten

FORMAT_VERSION = 1

# What an earlier end of a run measured; dropped when the run is continued.
RESULTS = (
    *("epochs_done", "train_seconds", "wall_seconds", "weights_sha256"),
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "test_correct", "test_total"),
    *("best_epoch", "best_validation_accuracy", "prediction"),
)


class RunState(StrEnum):
    """The state of a run: what its record says, or what `run_state` makes of it.

    A record says `running` from the start on, also after the process was killed.
    """

    RUNNING = "running"
    """A process trains it."""
    STOPPED = "stopped"
    """A record's: a signal ended it."""
    FAILED = "failed"
    """A record's: its loss was not finite."""
    FINISHED = "finished"
    PRUNED = "pruned"
    """A search ended it."""
    RESUMABLE = "resumable"
    """It can be continued."""
    LOST = "lost"
    """It ended before there was anything to continue from."""


class Calibration(BaseModel, extra="allow", strict=True):
    """What `predict` uses of a run beside its weights."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What logits are divided by before the softmax (Guo et al. 2017)."""
    rejection_threshold: float | None = None
    """The lowest detector score of a digit; None: the detector's own."""
    fitted_on: dict[str, Any] | None = None


class RunRecord(BaseModel, extra="allow", strict=True):
    """What a run was made from and what it measured: the content of `run.json`.

    Every value may be missing. A value of another type, in a file that some other program wrote,
    is read as None.
    """

    format_version: int = FORMAT_VERSION
    name: str | None = None
    recipe: str | None = None
    created: str | None = None
    """UTC, ISO 8601."""
    status: RunState | None = Field(default=None, strict=False)
    dataset: str | None = None
    dataset_digest: str | None = None
    """SHA-256 of the dataset's arrays."""
    dataset_split: str | None = None
    """How the test images were chosen, where the dataset does not say so."""
    class_names: list[str] | None = None
    objective: str | None = None
    versions: dict[str, str] | None = None
    device: str | None = None
    threads: int | None = None
    processes: int | None = None
    step: str | None = None
    seed: int | None = None
    command: list[str] | None = None
    git_commit: str | None = None
    init: dict[str, str] | None = None
    """`checkpoint` and `weights_sha256` of the weights that training started from."""
    custom: dict[str, str] | None = None
    """The names of `model`, `optimizer` and `data` where they were given from Python."""
    epochs: int | None = None
    num_parameters: int | None = None
    config: dict[str, dict[str, Any]] | None = None
    process: dict[str, Any] | None = None
    """`id` and `host` of the process that trained it last."""

    epochs_done: int | None = None
    train_seconds: float | None = None
    wall_seconds: float | None = None
    weights_sha256: str | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_correct: int | None = None
    test_total: int | None = None
    best_epoch: int | None = None
    best_validation_accuracy: float | None = None
    prediction: dict[str, Any] | None = None
    """See `Calibration`."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _none_for_another_type(cls, value: Any, handler: Callable[[Any], Any]) -> Any:  # noqa: ANN401
        try:
            return handler(value)
        except ValidationError:
            return None

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - whatever the file holds there
        """Return a value by its JSON name, None where it is missing."""
        return getattr(self, key, None)

    @property
    def is_finished(self) -> bool:
        return self.status == RunState.FINISHED

    @property
    def flat_config(self) -> dict[str, Any]:
        """The config by dotted key, in present names; empty where the record has none."""
        return {RENAMED_KEYS.get(key, key): value for key, value in flatten(self.config or {})}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `run.json`: what was set, by JSON name."""
        return self.model_dump(exclude_unset=True)

    def updated(self, **values: Any) -> RunRecord:  # noqa: ANN401
        return self.model_copy(update=values)
