"""Training callbacks, the values they get, and the flag that stops training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mnist_ce.config import Config
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics, MetricSums


@dataclass(frozen=True)
class RunInfo:
    """A run whose first step comes next."""

    run: RunDir
    config: Config  # resolved
    dataset: str
    num_images: int  # for training
    num_batches: int  # per epoch
    num_epochs: int  # in all
    epoch: int  # to be trained next, from 1; above 1 in a resumed run
    step: str  # `plain` or `fast`
    num_workers: int  # CPU threads that compute a step
    device: str


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch that is done."""

    epoch: int  # from 1
    batch: int  # batches done in this epoch
    seconds: float  # spent in this epoch
    metrics: MetricSums  # since the epoch began


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run: RunDir  # removed after a dry run
    record: RunRecord  # the content of `run.json`
    rows: list[EpochMetrics]  # of `metrics.csv`
    model: nn.Module  # the trained network, on the CPU: the module given to `train`, if one was


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
    """A request to stop training after the current batch, set by a signal handler."""

    signal_number: int | None = None  # of the signal; None: there was none
    is_checked: bool = False  # whether the training loop is running and will see the request
