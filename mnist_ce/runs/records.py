"""The record of a run, `run.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from mnist_ce.config import (
    RENAMED_KEYS,
    Count,
    Fraction,
    NotNegative,
    find_problems,
    flatten,
    to_tables,
)
from mnist_ce.system.text import first_problem, one_line, sanitize

FORMAT_VERSION = 1
MAX_DEPTH, MAX_TEXT = 20, 1000  # tables and lists within each other; characters of a text

# What an earlier end of a run measured; dropped when the run is continued.
RESULTS = (
    *("epochs_done", "train_seconds", "wall_seconds", "weights_sha256"),
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "test_correct", "test_total"),
    *("best_epoch", "best_validation_accuracy", "prediction", "error"),
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

    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)  # `calibrate` finds 0.01 to 100
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
    threads: Count | None = None
    processes: Count | None = None
    step: str | None = None
    seed: Count | None = None
    command: list[str] | None = None
    git_commit: str | None = None
    init: dict[str, str] | None = None
    """`checkpoint` and `weights_sha256` of the weights that training started from."""
    custom: dict[str, str] | None = None
    """The names of `model`, `optimizer` and `data` where they were given from Python."""
    custom_digests: dict[str, str] | None = None
    """Of the layers of that model, and of the settings of that optimizer."""
    epochs: Count | None = None
    num_parameters: Count | None = None
    config: dict[str, dict[str, Any]] | None = None
    process: dict[str, Any] | None = None
    """`id` and `host` of the process that trained it last."""

    epochs_done: Count | None = None
    train_seconds: NotNegative | None = None
    wall_seconds: NotNegative | None = None
    weights_sha256: str | None = None
    train_loss: NotNegative | None = None
    train_accuracy: Fraction | None = None
    validation_loss: NotNegative | None = None
    validation_accuracy: Fraction | None = None
    test_loss: NotNegative | None = None
    test_accuracy: Fraction | None = None
    test_correct: Count | None = None
    test_total: Count | None = None
    best_epoch: Count | None = None
    best_validation_accuracy: Fraction | None = None
    prediction: dict[str, Any] | None = None
    """See `Calibration`."""
    error: str | None = None
    """Why the run failed."""

    @classmethod
    def parse(cls, content: bytes) -> RunRecord:
        """Read JSON that any program may have written; a ValueError for another version."""
        try:
            record = _checked(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not valid JSON: {one_line(error)}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"has format_version {version!r}; {FORMAT_VERSION} is expected")
        found = cls.model_validate(record)
        # In present names, without what no config can hold; other keys are another version's.
        settings = {RENAMED_KEYS.get(k, k): value for k, value in flatten(found.config or {})}
        for problem in find_problems(settings):
            if problem["type"] != "extra_forbidden":
                settings.pop(".".join(map(str, problem["loc"][:2])), None)
        return found.updated(config=to_tables(settings)) if found.config else found

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
        """The config by dotted key; empty where the record has none."""
        return dict(flatten(self.config or {}))

    @property
    def calibration(self) -> Calibration:
        """What `prediction` holds; a ValueError if it is wrong."""
        try:
            return Calibration.model_validate(self.prediction or {})
        except ValidationError as error:
            raise ValueError(first_problem(error, "prediction")) from None

    def classes(self, num_outputs: int) -> tuple[str, ...]:
        """Return the names of the classes of a network's outputs; a ValueError for another number.

        Without names they are the numbers from 0, or no and yes.
        """
        if "class_names" not in self.model_fields_set:
            return ("no", "yes") if num_outputs == 1 else tuple(map(str, range(num_outputs)))
        names = self.class_names or ()
        if len(names) != max(num_outputs, 2):
            raise ValueError(f"class_names are not those of a network with {num_outputs} outputs")
        return tuple(names)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `run.json`: what was set, by JSON name."""
        return self.model_dump(exclude_unset=True)

    def updated(self, **values: Any) -> RunRecord:  # noqa: ANN401
        return self.model_copy(update=values)


def _checked(value: Any, depth: int = 0) -> Any:  # noqa: ANN401
    """Return JSON with finite numbers of 64 bits, None for others, and printable texts."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    match value:
        case str():
            return sanitize(value[:MAX_TEXT])
        case int() if not -(2**63) <= value < 2**63:
            return None
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_checked(item, depth + 1) for item in value]
        case dict():
            return {sanitize(key): _checked(item, depth + 1) for key, item in value.items()}
    return value
