"""What saving costs at the end of each epoch, as a share of the epoch's training time.

    python benchmarks/saving.py --data-dir data

Training waits while the weights are copied; writing then goes on in the background, beside the next
epoch. The sum of both is the most that saving can cost, were there no second core. (Epochs with and
without saving differ by less than epochs do among themselves.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from mnist_ce.runs.train_state import Snapshot
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.trainer import Trainer
from mnist_ce.training.training import train


class Timed(Callback):
    """Times the two parts of every save."""

    def __init__(self) -> None:
        self.waiting: list[float] = []
        self.writing: list[float] = []

    def start(self, trainer: Trainer) -> None:
        """Put watches around what saves."""
        vars(trainer)["_save"] = timed(trainer._save, self.waiting)
        vars(trainer.saver)["save"] = self.saving(trainer)

    def saving(self, trainer: Trainer) -> Callable[[Snapshot], None]:
        """Return what starts to write a snapshot, and times the writing."""
        save = trainer.saver.save

        def wrapped(snapshot: Snapshot) -> None:
            object.__setattr__(snapshot, "write", timed(snapshot.write, self.writing))
            save(snapshot)

        return wrapped


def timed(function: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    """Return a function that notes how long each of its calls takes."""

    def call(*arguments: Any, **options: Any) -> None:  # noqa: ANN401
        began = time.perf_counter()
        function(*arguments, **options)
        seconds.append(time.perf_counter() - began)

    return call


def main() -> None:
    """Run the benchmark and print its result as Markdown and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    reporter = Timed()
    with tempfile.TemporaryDirectory(prefix="saving-") as folder:
        settings = {
            "data.dir": options.data_dir,
            "data.dataset": options.dataset,
            "train.epochs": options.epochs,
            "train.threads": options.threads,
            "train.device": options.device,
            "train.test_every": 0,
            "run.output": folder,
            "run.plots": False,
        }
        trained = train(None, settings, reporter=reporter)
    epoch = statistics.median(row["seconds"] for row in trained.rows)
    waiting = statistics.median(reporter.waiting)
    writing = statistics.median(reporter.writing)
    result = {
        "epochs": options.epochs,
        "epoch_seconds": epoch,
        "waiting_seconds": round(waiting, 5),
        "writing_seconds": round(writing, 5),
        "most_cost": round((waiting + writing) / epoch, 5),
        "device": trained.record["device"],
        "threads": trained.record["threads"],
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print("| epoch | training waits | written in the background | both, of the epoch |")
    print("| --- | --- | --- | --- |")
    print(
        f"| {epoch:.3f} s | {1000 * waiting:.1f} ms | {1000 * writing:.1f} ms "
        f"| {result['most_cost']:.2%} |"
    )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
