"""Metrics between two epochs: the rows of `steps.csv`, collected while a run is trained."""

from __future__ import annotations

import time
from collections.abc import Callable

from mnist_ce.runs.train_state import MetricSums, TrainState
from mnist_ce.training.checkpointing import AsyncCheckpointer
from mnist_ce.training.steps.base import Step

FLUSH_SECONDS = 1.0


class StepMetrics:
    """Collects a row every `interval` batches and after the last one of each epoch.

    A row has the means since the row before, and no row spans two epochs. Rows are read from the
    device, formatted and passed to the checkpointer's thread at most once a second, at the end of
    an epoch and before a snapshot.
    """

    def __init__(
        self, step: Step, state: TrainState, checkpointer: AsyncCheckpointer, interval: int
    ) -> None:
        self.step, self.state = step, state
        self.checkpointer, self.interval = checkpointer, interval
        self._pending: list[tuple[int, float, Callable[[], MetricSums]]] = []
        self._flushed_at = time.monotonic()

    def on_step(self, learning_rate: float, *, is_last: bool) -> None:
        """Collect a row after a step, if one is due; `is_last`: the step ends its epoch."""
        if self.state.batch % self.interval and not is_last:
            return
        self._pending.append((self.step.num_steps, learning_rate, self.step.deferred_metrics()))
        if is_last or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Append the collected rows to `steps.csv`.

        Raises:
            NonFiniteLossError: If a loss was not finite; the rows before it are appended.
        """
        state, lines = self.state, []
        pending, self._pending = self._pending, []
        self._flushed_at = time.monotonic()
        try:
            for number, learning_rate, read in pending:
                sums = read()
                since = MetricSums(
                    sums.loss_sum - state.logged.loss_sum,
                    sums.num_correct - state.logged.num_correct,
                    sums.num_examples - state.logged.num_examples,
                )
                values = (since.loss, since.accuracy, learning_rate)
                lines.append(f"{number},{state.epoch}," + ",".join(f"{v:.6g}" for v in values))
                state.logged = sums
        finally:
            if lines:
                self.checkpointer.append("\n".join(lines) + "\n")
