"""How training shows itself: a bar on a terminal, lines elsewhere, a table at the end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer
from tqdm import tqdm

from mnist_ce.cli.printing import is_terminal, note, warn
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.training.callbacks import BatchInfo, Callback, RunInfo, StopFlag, TrainResult

__all__ = ["TerminalCallback", "print_training_result"]


class TerminalCallback(Callback):
    """Shows on stderr how training goes on: a bar on a terminal, a line per epoch elsewhere.

    Args:
        quiet: Show warnings only.
        verbose: A line every `log_interval` batches instead of a bar.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or not is_main()
        self.verbose = verbose
        self.bar: tqdm[Any] | None = None
        self.next_refresh = 0.0

    def on_start(self, info: RunInfo) -> None:
        """Print the data, the batch size, the step and the device."""
        self.info = info
        if not self.quiet:
            note(
                f"{info.dataset}: {info.num_images:,} images, batches of "
                f"{info.config.train.batch_size}, {info.step} step on {info.device}"
            )

    def on_batch(self, info: BatchInfo) -> None:
        """Move the bar, or print a line every `log_interval` batches."""
        if self.quiet:
            return
        is_due = info.batch % self.info.config.run.log_interval == 0
        if self.verbose:
            if is_due or info.batch == self.info.num_batches:
                sums = info.metrics()
                note(
                    f"epoch {info.epoch}/{self.info.num_epochs} "
                    f"batch {info.batch}/{self.info.num_batches}  loss {sums.loss:.4f}  "
                    f"{sums.num_examples / max(info.seconds, 1e-9):,.0f} images/s"
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
        sums = info.metrics()
        self.bar.n = info.batch
        rate = sums.num_examples / max(info.seconds, 1e-9)
        self.bar.set_postfix_str(f"loss {sums.loss:.4f}, {rate:,.0f} images/s")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the epoch's line."""
        self.close()
        if not self.quiet:
            note(epoch_line(metrics, self.info.num_epochs))

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Make the first Ctrl-C or SIGTERM stop training after its batch, the second one at once.

    While no training loop runs there is nothing to save, and the first one stops at once. A signal
    that the parent process ignores (as a shell does for a command that ends in &) stays ignored.
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
    """Return one epoch's results in one line that fits 80 columns."""
    parts = [f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"]
    parts.append(f"loss {row['train_loss']:.4f}")
    if row.get("validation_accuracy") is not None:
        parts.append(f"validation {row['validation_accuracy']:.2%}")
    if row.get("test_accuracy") is not None:
        parts.append(
            f"test loss {row['test_loss']:.4f} "
            f"{row['test_correct']}/{row['test_total']} ({row['test_accuracy']:.2%})"
        )
    parts.append(f"{row['seconds']:.1f} s")
    return "  ".join(parts)


def print_training_result(result: TrainResult, *, dry_run: bool) -> None:
    """Print a short table of a finished run."""
    record = result.record
    if dry_run:
        typer.echo("dry run: one batch trained, tested, saved and loaded again; nothing is kept")
        return
    typer.echo("epoch  train loss  test loss  test accuracy")
    for row in result.rows:
        tested = row.get("test_accuracy") is not None
        shown = (
            f"{row['test_loss']:9.4f}  {row['test_correct']}/{row['test_total']} "
            f"({row['test_accuracy']:.2%})"
            if tested
            else "        -  -"
        )
        typer.echo(f"{row['epoch']:5d}  {row['train_loss']:10.4f}  {shown}")
    typer.echo(
        f"{record['dataset']}, {record['recipe']}: {record['test_accuracy']:.2%} after "
        f"{record['epochs_done']} epochs in {record['train_seconds']:.1f} s"
    )
    typer.echo(f"weights_sha256 {record['weights_sha256']}")
