"""What is called as training goes on, with what it gets: the progress, and TensorBoard's events."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import nn

from mnist_ce.config import Config
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.network import INPUT_SIZE
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics, MetricSums
from mnist_ce.system.distributed import is_main, num_processes
from mnist_ce.system.errors import require
from mnist_ce.system.notebook import Shown, is_notebook
from mnist_ce.system.text import percent, short

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

GUESSING = 0.97  # of the loss of guessing: a network above it has learned nothing yet


@dataclass(frozen=True)
class RunInfo:
    """A run whose first step comes next."""

    run: RunDir
    config: Config  # resolved
    record: RunRecord  # the content of `run.json`
    num_images: int  # for training
    num_batches: int  # per epoch
    epoch: int  # to be trained next, from 1; above 1 in a resumed run
    num_workers: int  # CPU threads that compute a step


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch that is done."""

    epoch: int  # from 1
    batch: int  # batches done in this epoch
    seconds: float  # spent in this epoch
    metrics: MetricSums  # since the epoch began


@dataclass(frozen=True, repr=False)
class TrainResult(Shown):
    """A finished run."""

    run: RunDir  # removed after a dry run
    record: RunRecord  # the content of `run.json`
    rows: list[EpochMetrics]  # of `metrics.csv`
    model: nn.Module  # the trained network, on the CPU: the module given to `train`, if one was

    def lines(self) -> list[str]:
        """What was reached, and by what; any value of the record may be missing."""
        record, lines = self.record, ["not tested"]
        correct, total = record.test_correct, record.test_total
        if correct is not None and total and correct <= total:
            low, high = (percent(limit, 2) for limit in wilson_interval(correct, total))
            accuracy = f"{percent(correct / total, 2)} of {total:,} test images correct"
            lines = [f"{accuracy} (95 % interval {low} to {high})"]
        if record.best_epoch is not None and record.best_validation_accuracy is not None:
            best = f"{percent(record.best_validation_accuracy, 2)} of the validation split"
            lines.append(f"best epoch {record.best_epoch}: {best} ({self.run.best_path.name})")
        epochs = f"{record.epochs_done} epoch{'s' * (record.epochs_done != 1)}"
        seconds = f"{record.train_seconds or 0:.1f} s"
        return [*lines, f"{record.dataset}, recipe {record.recipe}, {epochs} in {seconds}"]

    def headline(self) -> str:
        return f"{'; '.join(self.lines())}; in {self.run.path}"

    def table(self) -> list[list[str]]:
        ends = ("epoch", "loss", "accuracy", "seconds")
        names = [*dict.fromkeys(n for row in self.rows for n in row if n.endswith(ends))]
        return [names, *([short(row.get(name, "")) for name in names] for row in self.rows)]

    def shown_images(self) -> Iterator[tuple[bytes, str]]:
        from mnist_ce.report.plots.curves import RunMetrics, draw_curves

        if self.rows:
            metrics = RunMetrics(self.rows, self.run.read_steps())
            yield draw_curves(self.run.name, "", [(self.run.name, [metrics])]), ""


class Callback:
    """What is called as training goes on; the base class does nothing."""

    def on_start(self, info: RunInfo) -> None: ...

    def on_batch(self, info: BatchInfo) -> None: ...

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Called with the epoch's row of `metrics.csv`."""

    def close(self) -> None:
        """Called last, also after an error."""


@dataclass
class StopFlag:
    """A request to stop training after the current batch, set by a signal handler."""

    signal_number: int | None = None  # of the signal; None: there was none
    is_checked: bool = False  # whether the training loop is running and will see the request


class ProgressCallback(Callback):
    """Logs the progress of training, a line per epoch, and shows a bar on a terminal or notebook.

    With `verbose`, a line every `log_interval` batches stands in for the bar. Of several runs,
    `place` is which one this is, and `num_after` how many come after it.
    """

    def __init__(
        self, *, verbose: bool = False, has_bar: bool = True, place: str = "", num_after: float = 0
    ) -> None:
        self.verbose, self.place, self.num_after = verbose, place and f"{place}  ", num_after
        self.has_bar = has_bar and not verbose and is_main()
        self.bar: tqdm[Any] | None = None
        self.has_explained = False  # how the test loss can be the lower one

    def on_start(self, info: RunInfo) -> None:
        self.info, self.started_at = info, time.monotonic()
        self.num_epochs = info.config.train.epochs
        if self.place:
            logger.info(f"{self.place}{info.run.name}: {info.num_images:,} images")
            return
        record = info.record
        counts = f", {num_processes()} processes" if num_processes() > 1 else ""
        if record.device == "cpu":
            counts += f", {info.num_workers} thread{'s' * (info.num_workers > 1)}"
        logger.info(
            f"{record.dataset}: {info.num_images:,} images, batches of "
            f"{info.config.train.batch_size}, {record.step} step on {record.device}{counts}"
        )
        num_outputs = 1 if record.objective == "binary" else len(record.class_names or ())
        sizes = "→".join(map(str, (INPUT_SIZE, *info.config.model.hidden, num_outputs)))
        name = (record.custom or {}).get("model", sizes)
        logger.info(f"network {name}, {record.num_parameters or 0:,} parameters")

    def on_batch(self, info: BatchInfo) -> None:
        is_last, interval = info.batch == self.info.num_batches, self.info.config.run.log_interval
        if not ((info.batch % interval == 0 or is_last) and logger.isEnabledFor(logging.INFO)):
            return
        sums = info.metrics
        epoch, loss = self._epoch(info.epoch), f"loss {sums.loss:.4f}"
        if self.verbose:
            rate = f"{sums.num_examples / max(info.seconds, 1e-9):,.0f} images/s"
            logger.info(f"{epoch} batch {info.batch}/{self.info.num_batches}  {loss}  {rate}")
        elif self.has_bar:
            num_steps = (info.epoch - 1) * self.info.num_batches + info.batch
            accuracy = f"accuracy {percent(sums.accuracy, 2):>8}"
            self._draw_bar(num_steps, f"{epoch} |{{bar}}| {loss}  {accuracy}  {{remaining}} left")

    def _draw_bar(self, num_steps: int, text: str) -> None:
        if self.bar is None:  # one of the whole run, for the time left
            from tqdm.auto import tqdm

            disable = False if is_notebook() else None  # None: unless this is a terminal
            look: dict[str, Any] = {"leave": False, "disable": disable, "dynamic_ncols": True}
            total = self.num_epochs * self.info.num_batches
            self.bar = tqdm(total=total, initial=num_steps, bar_format=text, **look)
        self.bar.bar_format = text
        self.bar.update(num_steps - self.bar.n)  # drawn at most every 0.1 s

    def _epoch(self, epoch: int) -> str:
        return f"{self.place}epoch {epoch:>{len(str(self.num_epochs))}}/{self.num_epochs}"

    def on_epoch(self, metrics: EpochMetrics) -> None:
        if self.bar is not None:
            self.bar.clear()
        parts = [self._epoch(metrics["epoch"]), f"loss {metrics['train_loss']:.4f}"]
        if metrics.get("validation_accuracy") is not None:
            parts.append(f"validation {percent(metrics['validation_accuracy'], 2)}")
        if metrics.get("test_accuracy") is not None:
            loss, accuracy = metrics["test_loss"], metrics["test_accuracy"]
            if self.place or len(parts) > 2:  # within 80 columns
                parts.append(f"test {percent(accuracy, 2)}")
            else:
                parts.append(f"test loss {loss:.4f}  test accuracy {percent(accuracy, 2)}")
        parts.append(f"{metrics['seconds']:.1f} s")
        if self.place:
            seconds, num_done = time.monotonic() - self.started_at, metrics["epoch"]
            num_left = (self.num_after + 1) * self.num_epochs - num_done
            left = seconds / (num_done + 1 - self.info.epoch) * num_left
            parts.append(f"{timedelta(seconds=round(left))} left")
        logger.info("  ".join(parts))
        if not self.place:
            self._explain(metrics)

    def _explain(self, metrics: EpochMetrics) -> None:
        """Say how the test loss can be the lower one, and what a run needs that learned nothing."""
        test_loss = metrics.get("test_loss", math.inf)
        if not self.has_explained and test_loss < metrics["train_loss"]:
            self.has_explained = True
            what = "of distorted images" if self.info.config.augment.distorts else "the mean"
            logger.info(f"  (loss is {what} over the epoch, test loss of its end)")
        is_over = metrics["epoch"] == self.num_epochs
        if is_over and self.num_epochs * self.info.num_batches > 1:  # one batch: a dry run
            num_classes = max(len(self.info.record.class_names or ()), 2)
            guessing = math.log(num_classes)
            if metrics.get("test_loss", metrics["train_loss"]) > GUESSING * guessing:
                logger.info(
                    f"the loss is still that of guessing (ln {num_classes} = {guessing:.3f}); try "
                    "the recipe fast (--config fast), more epochs, or a higher learning rate (--lr)"
                )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class TensorBoardCallback(Callback):
    """Writes the metrics of each epoch as TensorBoard events into the run, also of a resumed one.

    A UsageError if the tensorboard package is missing.
    """

    def __init__(self) -> None:
        require("tensorboard", extra="tensorboard")
        self.writer: SummaryWriter | None = None

    def on_start(self, info: RunInfo) -> None:
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            # Events of epochs to be repeated are dropped.
            self.writer = SummaryWriter(str(info.run.path / "tensorboard"), purge_step=info.epoch)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        if self.writer is not None:
            for key, value in metrics.items():
                split, _, quantity = key.rpartition("_")
                tag = f"{quantity}/{split}" if quantity in ("loss", "accuracy") else key
                self.writer.add_scalar(tag, value, metrics["epoch"])
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
