"""Training callbacks, the values they get, and the flag that stops training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mnist_ce.config import Config
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics, MetricSums


@dataclass(frozen=True)
class RunInfo:
    """A run whose first step comes next.

    Args:
        run: Its directory.
        config: Its resolved config.
        dataset: The name of the dataset.
        num_images: Training images.
        num_batches: Batches per epoch.
        num_epochs: Epochs in all.
        epoch: The epoch to be trained next, from 1; above 1 in a resumed run.
        step: The kind of step: `plain`, `fast`, `cuda-graph` or `distributed`.
        num_workers: The CPU threads that compute a step.
        device: Where it runs.
    """

    run: RunDir
    config: Config
    dataset: str
    num_images: int
    num_batches: int
    num_epochs: int
    epoch: int
    step: str
    num_workers: int
    device: str


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch that is done.

    Args:
        epoch: Its epoch, from 1.
        batch: Batches done in this epoch.
        seconds: Time spent in this epoch.
        metrics: Returns the sums since the epoch began; waits for the device.
    """

    epoch: int
    batch: int
    seconds: float
    metrics: Callable[[], MetricSums]


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        run: Its directory (removed after a dry run).
        record: The content of `run.json`.
        rows: The rows of `metrics.csv`.
        model: The trained network, on the CPU: the module given to `train`, if one was.
    """

    run: RunDir
    record: RunRecord
    rows: list[EpochMetrics]
    model: nn.Module


class Callback:
    """Training callbacks; the base class does nothing."""

    def on_start(self, info: RunInfo) -> None:
        """Called before the first step."""

    def on_batch(self, info: BatchInfo) -> None:
        """Called after each batch."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Called after each epoch, with its row of `metrics.csv`."""

    def on_end(self, result: TrainResult) -> None:
        """Called when the run is complete and its plots are drawn."""


@dataclass
class StopFlag:
    """A request to stop training after the current batch, set by a signal handler.

    Args:
        signal_number: The signal that asked; None: none did.
        is_checked: Whether the training loop is running and will see the request.
    """

    signal_number: int | None = None
    is_checked: bool = False
