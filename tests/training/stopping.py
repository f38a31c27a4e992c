"""Runs that are stopped at a batch."""

from __future__ import annotations

import signal
from itertools import count
from typing import Any

from mnist_ce.training.trainer import BatchInfo, Callback, StopFlag


def stop_after(num_batches: int, *callbacks: Callback) -> dict[str, Any]:
    """Return the arguments that let `train` stop after so many batches."""
    stop, batches = StopFlag(), count(1)

    class Stopper(Callback):
        def on_batch(self, info: BatchInfo) -> None:
            if next(batches) == num_batches:
                stop.signal_number = signal.SIGTERM

    return {"callbacks": [*callbacks, Stopper()], "stop": stop}
