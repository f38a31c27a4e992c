"""Training callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnist_ce.runs.train_state import EpochMetrics

if TYPE_CHECKING:
    from mnist_ce.training.trainer import Trainer, TrainResult

__all__ = ["Callback"]


class Callback:
    """What training tells while it runs; this one tells nothing. The CLI has one that prints."""

    def start(self, trainer: Trainer) -> None:
        """Hear that all is loaded and the first step comes next."""

    def batch(self, trainer: Trainer) -> None:
        """Hear that a batch is done."""

    def epoch(self, trainer: Trainer, row: EpochMetrics) -> None:
        """Hear that an epoch is done and tested."""

    def complete(self, trainer: Trainer) -> None:
        """Hear that the run is complete and saved; what follows may be cut short."""

    def finish(self, trainer: Trainer, result: TrainResult) -> None:
        """Hear that the run is complete and its pictures are drawn."""

    def stop_signal(self) -> int | None:
        """Return the signal that asks training to stop, if one came."""
        return None
