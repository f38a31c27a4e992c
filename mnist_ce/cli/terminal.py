"""Training on the terminal: its progress, its results, and stopping by signals."""

from __future__ import annotations

import contextlib
import shlex
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mnist_ce.cli.printing import echo, note, warn
from mnist_ce.config import Config, RunConfig
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.system.distributed import is_main
from mnist_ce.system.text import percent
from mnist_ce.training.callbacks import StopFlag, TrainResult

# Keys whose values change nothing of what the default recipe is said to reach.
OF_ANY_RUN = {f"run.{key}" for key in RunConfig.model_fields}
OF_ANY_RUN |= {"data.dataset", "data.dir", "data.mirror"}
OF_ANY_RUN |= {f"train.{key}" for key in ("epochs", "seed", "device", "threads", "shares", "step")}
ABOUT_DEFAULT = (
    "The default recipe is that of the lessons: 57 % after its first epoch. In the\n"
    "time of its nine epochs, mnist-ce train --config fast reaches 98.9 %."
)


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
            f"{percent(correct / total, 2)} of {total:,} test images correct "
            f"(95 % interval {percent(low, 2)} to {percent(high, 2)})"
        )
    echo(reached)
    if record.best_epoch is not None and record.best_validation_accuracy is not None:
        best = f"{percent(record.best_validation_accuracy, 2)} of the validation split"
        echo(f"best epoch {record.best_epoch}: {best} ({result.run.best_path.name})")
    echo(
        f"{record.dataset}, recipe {record.recipe}, {record.epochs_done} "
        f"epoch{'s' * (record.epochs_done != 1)} in {record.train_seconds or 0:.1f} s"
    )


def print_next_steps(result: TrainResult) -> None:
    run, images = result.run, ", ".join(sorted(path.name for path in result.run.path.glob("*.png")))
    if images:
        note(textwrap.fill(f"images in {run.path}: {images}", 79, break_on_hyphens=False))
    record = result.record
    settings = record.flat_config
    changed = {key for key, value in Config().flat().items() if settings[key] != value}
    if record.dataset == "mnist" and changed <= OF_ANY_RUN and not record.custom:
        note(ABOUT_DEFAULT)
    name = shlex.quote(run.name if run.path.parent == Path("checkpoints") else str(run.path))
    note(
        "next, for curves and mistakes on one page, errors by class, and an image:\n"
        f"  mnist-ce report {name}\n"
        f"  mnist-ce evaluate {name}\n"
        f"  mnist-ce predict examples/seven.jpg --checkpoint {name}"
    )
