"""Training on the terminal: its progress, its results, and stopping by signals."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer
from tqdm import tqdm

from mnist_ce.cli.printing import is_terminal, note, print_table, warn
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.training.callbacks import BatchInfo, Callback, RunInfo, StopFlag, TrainResult

WINDOW_BATCHES, WINDOW_SECONDS = 50, 0.5  # the least over which the speed is measured


class TerminalCallback(Callback):
    """Prints the progress of training to stderr: a line per epoch, and a bar on a terminal.

    With `verbose`, a line every `log_interval` batches stands in for the bar; with `quiet` nothing
    is printed, though warnings are logged all the same.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or not is_main()
        self.verbose = verbose
        self.bar: tqdm[Any] | None = None
        self.next_refresh = 0.0
        self.first_rate: float | None = None  # images per second in the first window; 0: warned
        self.window = (0, 0.0)  # batches since it began, and when it began

    def on_start(self, info: RunInfo) -> None:
        """Print a line on the data, the batch size, the step and the device."""
        self.info = info
        if not self.quiet:
            threads = f", {info.num_workers} thread{'s' * (info.num_workers > 1)}"
            note(
                f"{info.dataset}: {info.num_images:,} images, batches of "
                f"{info.config.train.batch_size}, {info.step} step on {info.device}"
                f"{threads if info.device == 'cpu' else ''}"
            )

    def on_batch(self, info: BatchInfo) -> None:
        """Advance the bar, or print a line every `log_interval` batches."""
        self._check_speed()
        is_due = info.batch % self.info.config.run.log_interval == 0
        if self.verbose:
            is_due = is_due or info.batch == self.info.num_batches
        else:
            is_due = is_due and is_terminal() and time.monotonic() >= self.next_refresh
        if self.quiet or not is_due:
            return
        sums = info.metrics()
        loss = f"loss {sums.loss:.4f}"
        rate = f"{sums.num_examples / max(info.seconds, 1e-9):,.0f} images/s"
        epoch = f"epoch {info.epoch}/{self.info.num_epochs}"
        if self.verbose:
            note(f"{epoch} batch {info.batch}/{self.info.num_batches}  {loss}  {rate}")
            return
        self.next_refresh = time.monotonic() + 0.1
        if self.bar is None:
            self.bar = tqdm(
                total=self.info.num_batches,
                initial=info.batch,
                desc=epoch,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}]",
            )
        self.bar.n = info.batch
        self.bar.set_postfix_str(f"{loss}, {rate}")

    def _check_speed(self) -> None:
        """Warn once when training on a CPU has become less than half as fast as at its start."""
        batches, began = self.window
        seconds = time.monotonic() - began
        if not began:
            self.window = (0, time.monotonic())
        elif batches + 1 < WINDOW_BATCHES or seconds < WINDOW_SECONDS:
            self.window = (batches + 1, began)
        else:
            rate = (batches + 1) * self.info.config.train.batch_size / seconds
            self.window = (0, time.monotonic())
            if self.first_rate is None:
                self.first_rate = rate
            elif rate < self.first_rate / 2 and self.info.device == "cpu":
                warn(
                    f"training has slowed down from {self.first_rate:,.0f} to {rate:,.0f} "
                    "images/s: another program is using the CPU"
                )
                self.first_rate = 0.0

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print a line of the epoch's metrics."""
        self.close()
        self.window = (0, 0.0)  # the test, and what else happens between epochs, is not training
        if not self.quiet:
            note(epoch_line(metrics, self.info.num_epochs))

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Stop training after the current batch on the first SIGINT or SIGTERM, at once on the second.

    Where no training loop runs, nothing needs saving, and the first one stops at once. A signal
    that is ignored on entry (as by a shell for a command that ends in &) stays ignored.
    """
    stop = StopFlag()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.signal_number is not None or not stop.is_checked:
            raise SystemExit(128 + number)  # not an Exception, which could be caught as an error
        stop.signal_number = number

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    try:
        for number in handled:
            signal.signal(number, on_signal)
        yield stop
    except SystemExit:
        if is_main():
            warn("stopped at once; what was saved last is intact")
        raise
    finally:
        for number in handled:
            signal.signal(number, before[number])


def epoch_line(row: EpochMetrics, num_epochs: int) -> str:
    """Return an epoch's metrics as one line that fits 80 columns."""
    epoch = f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"
    parts = [epoch, f"loss {row['train_loss']:.4f}"]
    if row.get("validation_accuracy") is not None:
        parts.append(f"validation {row['validation_accuracy']:.2%}")
    if row.get("test_accuracy") is not None:
        parts.append(f"test loss {row['test_loss']:.4f} {_test_accuracy(row)}")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])


def _test_accuracy(row: EpochMetrics) -> str:
    return f"{row['test_correct']}/{row['test_total']} ({row['test_accuracy']:.2%})"


def print_training_result(result: TrainResult) -> None:
    """Print the metrics of each epoch as a table, then a summary of the run."""
    rows = [("epoch", "train loss", "test loss", "test accuracy")]
    for row in result.rows:
        tested = ("-", "-")
        if row.get("test_accuracy") is not None:
            tested = (f"{row['test_loss']:.4f}", _test_accuracy(row))
        rows.append((str(row["epoch"]), f"{row['train_loss']:.4f}", *tested))
    print_table(rows, ">>><")
    record = result.record
    typer.echo(
        f"{record['dataset']}, {record['recipe']}: {record['test_accuracy']:.2%} after "
        f"{record['epochs_done']} epochs in {record['train_seconds']:.1f} s\n"
        f"weights_sha256 {record['weights_sha256']}"
    )
