"""How far a run has come, and who is told."""

from __future__ import annotations

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
    rows: list[Row] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_row(self) -> Row | None:
        """The epoch of the best validation result so far."""
        return self.rows[self.best_epoch - 1] if self.best_epoch else None
