"""How far a run has come, and who is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mnist_ce.steps import Totals

if TYPE_CHECKING:
    from mnist_ce.trainer import Trainer, TrainResult

__all__ = ["Progress", "Reporter", "Row"]

Row = dict[str, Any]


class Reporter:
    """What training tells while it runs; this one tells nothing. The CLI has one that prints."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def progress(self, text: str) -> None:
        """Take a line about something slow that is about to happen."""

    def start(self, trainer: Trainer) -> None:
        """Hear that all is loaded and the first step comes next."""

    def batch(self, trainer: Trainer) -> None:
        """Hear that a batch is done."""

    def epoch(self, trainer: Trainer, row: Row) -> None:
        """Hear that an epoch is done and tested."""

    def complete(self, trainer: Trainer) -> None:
        """Hear that the run is complete and saved; what follows may be cut short."""

    def finish(self, trainer: Trainer, result: TrainResult) -> None:
        """Hear that the run is complete and its pictures are drawn."""

    def stop_signal(self) -> int | None:
        """Return the signal that asks training to stop, if one came."""
        return None


@dataclass
class Progress:
    """How far a run has come. With the step's state this is all that continuing needs."""

    epoch: int = 1
    batch: int = 0  # batches done in this epoch
    totals: Totals = field(default_factory=Totals)
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # of whole epochs
    wall_seconds: float = 0.0  # with loading, testing and saving
    rows: list[Row] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_row(self) -> Row | None:
        """The epoch of the best validation result so far."""
        return self.rows[self.best_epoch - 1] if self.best_epoch else None

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values, which nothing changes later."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, values: Any) -> Progress:  # noqa: ANN401 - whatever a file holds
        """Return what `to_plain` was made from.

        Raises:
            ValueError: If the values are not of that form.
        """
        try:
            if not isinstance(values, dict) or not isinstance(values["totals"], dict):
                raise TypeError("no table")
            progress = cls(**{**values, "totals": Totals(**values["totals"])})
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
