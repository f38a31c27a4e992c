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

from mnist_ce.cli.printing import is_terminal, note, table, warn
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.training.callbacks import BatchInfo, Callback, RunInfo, StopFlag, TrainResult


class TerminalCallback(Callback):
    """Prints the progress of training to stderr: a line per epoch, and a bar on a terminal.

    Args:
        quiet: Print nothing; warnings are logged all the same.
        verbose: Print a line every `log_interval` batches instead of a bar.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or not is_main()
        self.verbose = verbose
        self.bar: tqdm[Any] | None = None
        self.next_refresh = 0.0

    def on_start(self, info: RunInfo) -> None:
        """Print a line on the data, the batch size, the step and the device."""
        self.info = info
        if not self.quiet:
            note(
                f"{info.dataset}: {info.num_images:,} images, batches of "
                f"{info.config.train.batch_size}, {info.step} step on {info.device}"
            )

    def on_batch(self, info: BatchInfo) -> None:
        """Advance the bar, or print a line every `log_interval` batches."""
        if self.quiet:
            return
        is_due = info.batch % self.info.config.run.log_interval == 0
        if self.verbose:
            if is_due or info.batch == self.info.num_batches:
                loss, rate = _loss_and_rate(info)
                note(
                    f"epoch {info.epoch}/{self.info.num_epochs} "
                    f"batch {info.batch}/{self.info.num_batches}  {loss}  {rate}"
                )
        elif is_due and is_terminal() and time.monotonic() >= self.next_refresh:
            self.next_refresh = time.monotonic() + 0.1
            self._refresh(info)

    def _refresh(self, info: BatchInfo) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=self.info.num_batches,
                initial=info.batch,
                desc=f"epoch {info.epoch}/{self.info.num_epochs}",
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}]",
            )
        self.bar.n = info.batch
        self.bar.set_postfix_str(", ".join(_loss_and_rate(info)))

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print a line of the epoch's metrics."""
        self.close()
        if not self.quiet:
            note(epoch_line(metrics, self.info.num_epochs))

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _loss_and_rate(info: BatchInfo) -> tuple[str, str]:
    sums = info.metrics()
    rate = sums.num_examples / max(info.seconds, 1e-9)
    return f"loss {sums.loss:.4f}", f"{rate:,.0f} images/s"


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
    parts = [f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"]
    parts.append(f"loss {row['train_loss']:.4f}")
    if row.get("validation_accuracy") is not None:
        parts.append(f"validation {row['validation_accuracy']:.2%}")
    if row.get("test_accuracy") is not None:
        parts.append(f"test loss {row['test_loss']:.4f} {_test_accuracy(row)}")
    parts.append(f"{row['seconds']:.1f} s")
    return "  ".join(parts)


def _test_accuracy(row: EpochMetrics) -> str:
    return f"{row['test_correct']}/{row['test_total']} ({row['test_accuracy']:.2%})"


def print_training_result(result: TrainResult, *, dry_run: bool) -> None:
    """Print the metrics of each epoch as a table, then a summary of the run."""
    record = result.record
    if dry_run:
        typer.echo("dry run: one batch trained, tested, saved and loaded again; nothing is kept")
        return
    rows = [("epoch", "train loss", "test loss", "test accuracy")]
    for row in result.rows:
        tested = ("-", "-")
        if row.get("test_accuracy") is not None:
            tested = (f"{row['test_loss']:.4f}", _test_accuracy(row))
        rows.append((str(row["epoch"]), f"{row['train_loss']:.4f}", *tested))
    for line in table(rows, ">>><"):
        typer.echo(line)
    typer.echo(
        f"{record['dataset']}, {record['recipe']}: {record['test_accuracy']:.2%} after "
        f"{record['epochs_done']} epochs in {record['train_seconds']:.1f} s"
    )
    typer.echo(f"weights_sha256 {record['weights_sha256']}")
