"""Runs that are stopped at a batch, or killed at a write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from mnist_ce.training.callbacks import BatchInfo, Callback, StopFlag


def stop_after(num_batches: int, *callbacks: Callback) -> dict[str, Any]:
    """Return the arguments that let `train` stop after so many batches."""
    stop, batches = StopFlag(), count(1)

    class Stopper(Callback):
        def on_batch(self, info: BatchInfo) -> None:
            if next(batches) == num_batches:
                stop.signal_number = signal.SIGTERM

    return {"callbacks": [*callbacks, Stopper()], "stop": stop}


def kill_at_write(number: int) -> None:
    """Let SIGKILL end this process before the n-th call that changes or flushes the disk."""
    calls = count()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "rename", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
