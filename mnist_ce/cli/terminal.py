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

from mnist_ce.cli.options import is_terminal, note, warn
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.trainer import Trainer, TrainResult

__all__ = ["TerminalCallback", "print_training_result"]


class TerminalCallback(Callback):
    """Tells a person on stderr how training goes, and listens for Ctrl-C and SIGTERM.

    Args:
        quiet: Tell warnings only.
        verbose: A line every `log_interval` batches instead of a bar.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.speaks = is_main()  # of several processes one tells it all
        self.quiet = quiet or not self.speaks
        self.verbose = verbose
        self.bar: tqdm[Any] | None = None
        self.signal_number: int | None = None
        self.training = False
        self.next_refresh = 0.0

    def start(self, trainer: Trainer) -> None:
        """Say what is trained on what."""
        self.training = True
        if self.quiet:
            return
        task, config = trainer.task, trainer.config
        note(
            f"{task.dataset}: {len(task.train):,} images, batches of {config.train.batch_size}, "
            f"{trainer.step_kind} step on {trainer.device}"
        )

    def batch(self, trainer: Trainer) -> None:
        """Move the bar, or print a line every `log_interval` batches."""
        if self.quiet:
            return
        done, interval = trainer.progress.batch, trainer.config.run.log_interval
        if self.verbose:
            if done % interval == 0 or done == trainer.num_batches:
                totals = trainer.step.metrics()
                note(
                    f"epoch {trainer.progress.epoch}/{trainer.num_epochs} "
                    f"batch {done}/{trainer.num_batches}  loss {totals.loss:.4f}  "
                    f"{totals.num_examples / self._seconds(trainer):,.0f} images/s"
                )
        elif is_terminal() and done % interval == 0:
            self._refresh(trainer)

    def _refresh(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now < self.next_refresh:
            return
        self.next_refresh = now + 0.1
        if self.bar is None:
            self.bar = tqdm(
                total=trainer.num_batches,
                initial=trainer.progress.batch,
                desc=f"epoch {trainer.progress.epoch}/{trainer.num_epochs}",
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}]",
            )
        totals = trainer.step.metrics()
        rate = totals.num_examples / self._seconds(trainer)
        self.bar.n = trainer.progress.batch
        self.bar.set_postfix_str(f"loss {totals.loss:.4f}, {rate:,.0f} images/s")

    def _seconds(self, trainer: Trainer) -> float:
        return max(time.perf_counter() - trainer.epoch_began, 1e-9)

    def epoch(self, trainer: Trainer, row: EpochMetrics) -> None:
        """Print the epoch's line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if not self.quiet:
            note(epoch_line(row, trainer.num_epochs))

    def stop_signal(self) -> int | None:
        """Return the signal that came, if any."""
        return self.signal_number

    def complete(self, trainer: Trainer) -> None:
        """Let a signal stop at once what is left to do."""
        self.training = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a polite stop, the second into an instant one.

        While nothing is trained there is nothing to save, and the first one stops at once. A
        signal that the parent process wants ignored (as a shell does for what it starts with &)
        stays ignored.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
        try:
            for number in heard:
                signal.signal(number, self._heard)
            yield
        except SystemExit:
            if self.speaks:
                warn("stopped at once; what was saved last is intact")
            raise
        finally:
            for number in heard:
                signal.signal(number, before[number])
            if self.bar is not None:
                self.bar.close()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None or not self.training:
            raise SystemExit(128 + number)  # no Exception, so that nothing takes it for an error
        self.signal_number = number


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
