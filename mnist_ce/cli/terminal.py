"""Training on the terminal: its progress, its results, and stopping by signals."""

from __future__ import annotations

import contextlib
import shlex
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from mnist_ce.cli.printing import echo, note, warn
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main, num_processes
from mnist_ce.training.trainer import BatchInfo, Callback, RunInfo, StopFlag, TrainResult

WINDOW_BATCHES, WINDOW_SECONDS = 50, 0.5  # over which the speed is measured, at least
ABOUT_DEFAULT = (
    "The default recipe is that of the lessons: 57 % after its first epoch. In the\n"
    "time of its nine epochs, mnist-ce train --config fast reaches 98.9 %."
)


class TerminalCallback(Callback):
    """Prints the progress of training to stderr: a line per epoch, and a bar on a terminal.

    With `verbose`, a line every `log_interval` batches stands in for the bar; with `quiet` nothing
    is printed, though warnings are logged all the same.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or not is_main()
        self.verbose = verbose
        self.bar: tqdm[Any] | None = None
        self.first_rate: float | None = None  # images per second in the first window
        self.has_warned = False  # of a lower rate

    def on_start(self, info: RunInfo) -> None:
        self.info = info
        self._begin_window()
        if not self.quiet:
            counts = f", {num_processes()} processes" if num_processes() > 1 else ""
            if info.record.device == "cpu":
                counts += f", {info.num_workers} thread{'s' * (info.num_workers > 1)}"
            note(
                f"{info.record.dataset}: {info.num_images:,} images, batches of "
                f"{info.config.train.batch_size}, {info.record.step} step on "
                f"{info.record.device}{counts}"
            )

    def on_batch(self, info: BatchInfo) -> None:
        self._check_speed()
        is_due = info.batch % self.info.config.run.log_interval == 0
        is_due = is_due or (self.verbose and info.batch == self.info.num_batches)
        if self.quiet or not is_due:
            return
        sums, num_epochs = info.metrics, self.info.config.train.epochs
        epoch = f"epoch {info.epoch:>{len(str(num_epochs))}}/{num_epochs}"
        loss = f"loss {sums.loss:.4f}"
        if self.verbose:
            rate = f"{sums.num_examples / max(info.seconds, 1e-9):,.0f} images/s"
            note(f"{epoch} batch {info.batch}/{self.info.num_batches}  {loss}  {rate}")
            return
        num_steps = (info.epoch - 1) * self.info.num_batches + info.batch
        # tqdm's own postfix begins with a comma.
        text = f"{epoch} |{{bar}}| {loss}  accuracy {sums.accuracy:7.2%}  {{remaining}} left"
        if self.bar is None:  # one of the whole run, for the time left; on a terminal only
            look: dict[str, Any] = {"leave": False, "disable": None, "dynamic_ncols": True}
            total = num_epochs * self.info.num_batches
            self.bar = tqdm(total=total, initial=num_steps, bar_format=text, **look)
        self.bar.bar_format = text
        self.bar.update(num_steps - self.bar.n)  # drawn at most every 0.1 s

    def _check_speed(self) -> None:
        """Warn once when training on a CPU has become less than half as fast as at its start."""
        self.window_batches += 1
        seconds = time.monotonic() - self.window_began_at
        if self.window_batches < WINDOW_BATCHES or seconds < WINDOW_SECONDS:
            return
        rate = self.window_batches * self.info.config.train.batch_size / seconds
        self._begin_window()
        if self.first_rate is None:
            self.first_rate = rate
        if rate < self.first_rate / 2 and self.info.record.device == "cpu" and not self.has_warned:
            self.has_warned = True
            if self.bar is not None:
                self.bar.clear()
            warn(
                f"training has slowed down from {self.first_rate:,.0f} to {rate:,.0f} "
                "images/s: another program is using the CPU"
            )

    def _begin_window(self) -> None:
        self.window_batches, self.window_began_at = 0, time.monotonic()

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self._begin_window()  # the test before is not training
        if self.bar is not None:
            self.bar.clear()
        if self.quiet:
            return
        num_epochs = self.info.config.train.epochs
        parts = [f"epoch {metrics['epoch']:>{len(str(num_epochs))}}/{num_epochs}"]
        parts.append(f"loss {metrics['train_loss']:.4f}")
        if metrics.get("validation_accuracy") is not None:
            parts.append(f"validation {metrics['validation_accuracy']:.2%}")
        if metrics.get("test_accuracy") is not None:
            loss, accuracy = metrics["test_loss"], metrics["test_accuracy"]
            parts.append(f"test loss {loss:.4f} accuracy {accuracy:.2%}")
        note("  ".join([*parts, f"{metrics['seconds']:.1f} s"]))  # fits 80 columns

    def close(self) -> None:
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


def print_training_result(result: TrainResult) -> None:
    """Print what a record says, in which any value may be missing."""
    record, reached = result.record, "not tested"
    correct, total = record.test_correct, record.test_total
    if correct is not None and total and correct <= total:
        low, high = wilson_interval(correct, total)
        reached = (
            f"{correct / total:.2%} of {total:,} test images correct "
            f"(95 % interval {low:.2%} to {high:.2%})"
        )
    echo(reached)
    if record.best_epoch is not None and record.best_validation_accuracy is not None:
        best = f"{record.best_validation_accuracy:.2%} of the validation split"
        echo(f"best epoch {record.best_epoch}: {best} ({result.run.best_path.name})")
    echo(
        f"{record.dataset}, recipe {record.recipe}, {record.epochs_done} "
        f"epoch{'s' * (record.epochs_done != 1)} in {record.train_seconds or 0:.1f} s"
    )


def print_next_steps(result: TrainResult) -> None:
    run, images = result.run, ", ".join(sorted(path.name for path in result.run.path.glob("*.png")))
    if images:
        note(textwrap.fill(f"images in {run.path}: {images}", 79, break_on_hyphens=False))
    if result.record.recipe == "default" and result.record.dataset == "mnist":
        note(ABOUT_DEFAULT)
    name = shlex.quote(run.name if run.path.parent == Path("checkpoints") else str(run.path))
    note(
        "next, for curves and mistakes on one page, errors by class, and your own image:\n"
        f"  mnist-ce report {name}\n"
        f"  mnist-ce evaluate {name}\n"
        f"  mnist-ce predict photo.jpg --checkpoint {name}"
    )
