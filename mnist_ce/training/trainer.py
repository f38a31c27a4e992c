"""One run, from loaded data to the last file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mnist_ce.config import Config
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import MLP
from mnist_ce.report.report import draw_plots
from mnist_ce.runs.checkpoint import load_state_dict, save_tensors, weights_sha256
from mnist_ce.runs.run_dir import FORMAT_VERSION, RunDir
from mnist_ce.runs.run_folder import new_run, run_name, timestamp
from mnist_ce.runs.train_state import EpochMetrics, MetricSums, Snapshot, TrainState, load_snapshot
from mnist_ce.system.device import reproducible, resolve_device, synchronize
from mnist_ce.system.distributed import (
    all_reduce_max,
    broadcast_from_main,
    is_main,
    local_device,
    main_first,
)
from mnist_ce.system.errors import RunError, StoppedError, TrainingError, UsageError
from mnist_ce.system.files import one_line
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.checkpointing import AsyncCheckpointer
from mnist_ce.training.measuring import is_better, measure
from mnist_ce.training.metadata import changes, continued, description, results
from mnist_ce.training.run_setup import (
    config_tables,
    first_batch,
    load_run_task,
    make_batches,
    make_run_step,
)
from mnist_ce.training.schedule import learning_rates
from mnist_ce.training.steps import NonFiniteLossError, Step, choose_step

__all__ = ["TrainResult", "Trainer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        run: Its folder (gone again after a dry run).
        record: What `run.json` holds.
        rows: What `metrics.csv` holds.
        model: The trained network, on the CPU.
    """

    run: RunDir
    record: dict[str, Any]
    rows: list[EpochMetrics]
    model: MLP


class Trainer:
    """One run, from loaded data to the last file.

    Args:
        config: The resolved config.
        reporter: Who is told what happens.
        recipe: What the config is called.
        resumed: The run to continue, held by this process; None: a new one.
        first_batch_only: Keep one batch of each split.
    """

    run: RunDir
    step: Step
    record: dict[str, Any]
    saver: AsyncCheckpointer

    def __init__(
        self,
        config: Config,
        reporter: Callback,
        recipe: str,
        *,
        resumed: RunDir | None = None,
        first_batch_only: bool = False,
    ) -> None:
        self.began = time.perf_counter()
        self.config = config
        self.reporter = reporter
        self.recipe = recipe
        self.resumed = resumed
        self.device = resolve_device(local_device(config.train.device))
        self.step_kind = choose_step(config.train.step, self.device.type)
        before = broadcast_from_main(lambda: resumed.read_record() if resumed else None)
        self.task = main_first(lambda: load_run_task(config, before), lambda task: task.digest)
        self.num_epochs = config.train.epochs
        self.draws_plots = config.run.plots and not first_batch_only
        if first_batch_only:
            self.task = first_batch(self.task, config.train.batch_size)
            self.num_epochs = 1
        self.progress = TrainState()
        self.unsaved_best: dict[str, Tensor] | None = None
        self.num_saved_rows = 0
        self.last_save = time.monotonic()

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return -(-len(self.task.train) // self.config.train.batch_size)

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or patience has run out."""
        rows, patience = self.progress.rows, self.config.train.patience
        out_of_patience = bool(patience) and len(rows) - self.progress.best_epoch >= patience
        return self.progress.epoch > self.num_epochs or out_of_patience

    def run_to_end(self) -> TrainResult:
        """Train, test and write until the last epoch is done."""
        config = self.config.train
        with reproducible(config.seed, config.threads), contextlib.ExitStack() as stack:
            self._prepare()
            self.run = broadcast_from_main(lambda: self._open(stack))
            self.saver = stack.enter_context(AsyncCheckpointer(self.run if is_main() else None))
            if self.resumed is not None:
                self._take_up()
            self.reporter.start(self)
            try:
                while not self.is_over:
                    self._run_epoch()
            except NonFiniteLossError as error:
                self._write_record("failed")
                raise TrainingError(
                    f"the loss is {error.loss} in epoch {self.progress.epoch}, batch "
                    f"{error.step % self.num_batches + 1} of {self.num_batches}; the update was "
                    f"not made, and {self.run.path} keeps what was saved before. Try a lower "
                    "--lr"
                ) from None
            result = broadcast_from_main(self._finish)
            self.reporter.complete(self)
            if is_main() and self.draws_plots:
                self._draw_plots()
        self.reporter.finish(self, result)
        return result

    def _prepare(self) -> None:
        config, task = self.config, self.task
        self.model = MLP(config.model.hidden, task.num_outputs).to(self.device)
        self.batches = make_batches(config, task.train, self.device, self.num_epochs)
        self.learning_rate = learning_rates(
            config.schedule, config.optimizer.learning_rate, self.num_epochs, self.num_batches
        )
        self.step = make_run_step(config, self.step_kind, self.model, self.batches, task)
        self.record = description(
            config, task, self.model, self.device, self.step_kind, self.num_epochs
        )

    def _open(self, stack: contextlib.ExitStack) -> RunDir:
        """Make the run's folder, with config and record, or take up that of an interrupted run."""
        if self.resumed is not None:
            return self.resumed
        output = Path(self.config.run.output)
        self.record |= {
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe,
            "created": timestamp(),
            "status": "running",
        }

        def make_name() -> str:
            name = self.config.run.name or run_name(output, self.task.dataset, self.recipe)
            self.record["name"] = name
            return name

        def fill(run: RunDir) -> None:
            make_name()
            run.write_config(config_tables(self.config))
            run.write_record(self.record)

        return stack.enter_context(new_run(output, make_name, fill))

    def _take_up(self) -> None:
        """Go on from where an interrupted run was saved last: at its beginning, if nowhere."""
        before = broadcast_from_main(lambda: self.run.read_record() or {})
        changed = changes(before, self.record)
        self.record = continued(before, self.record)
        self.recipe = self.record["recipe"] = str(before.get("recipe", self.recipe))
        found = broadcast_from_main(self._load)
        if found is not None:
            state, self.progress = found
            self.step.load_state(state)
            self.began -= self.progress.wall_seconds
        if self.is_over:
            epochs = len(self.progress.rows)
            logger.info(f"run {self.run.path} is complete after {epochs} epochs")
        elif changed and self.step.num_steps:
            logger.warning(
                "the weights may differ in their last bits from those of an uninterrupted run, "
                f"since this has changed: {'; '.join(changed)}"
            )
        self.saver.write(self.run.write_config, config_tables(self.config))
        self._write_record("running")
        if self.progress.rows:
            self.saver.write(self.run.write_metrics, self.progress.rows)

    def _load(self) -> tuple[dict[str, Any], TrainState] | None:
        if not self.run.resume_path.exists():
            return None
        state, progress = load_snapshot(self.run, self.step.eval_weights())
        place = (progress.epoch - 1) * self.num_batches + progress.batch
        averages = bool(self.config.average.decay)
        if state["num_steps"] != place or bool(state["average"]) != averages:
            raise RunError(
                f"{self.run.resume_path} does not fit {self.run.config_path}: one of them was "
                "changed since the run was interrupted"
            )
        if place > self.num_epochs * self.num_batches:
            raise UsageError(
                f"run {self.run.path} is past epoch {self.num_epochs} already; give more --epochs"
            )
        return state, progress

    def _run_epoch(self) -> None:
        progress = self.progress
        self.step.reset_metrics(progress.totals)
        self.epoch_began = time.perf_counter() - progress.epoch_seconds
        train_one_epoch(
            self.step,
            self.batches,
            progress.epoch,
            self.learning_rate,
            first_batch=progress.batch,
            after_batch=self._after_batch,
        )
        totals = self.step.metrics()
        synchronize(self.device)
        seconds = time.perf_counter() - self.epoch_began
        row: EpochMetrics = {
            "epoch": progress.epoch,
            "train_loss": totals.loss,
            "train_accuracy": totals.accuracy,
            "learning_rate": self.learning_rate(self.step.num_steps - 1),
            "seconds": round(seconds, 4),
            "images_per_second": round(totals.num_examples / seconds, 1),
        }
        every = self.config.train.test_every
        is_last = progress.epoch == self.num_epochs
        row |= self._measured(test=is_last or (every > 0 and progress.epoch % every == 0))
        if self.task.validation is not None and is_better(row, progress.best_row):
            progress.best_epoch = progress.epoch
            self.unsaved_best = self.weights()
        progress.rows.append(row)
        progress.train_seconds += seconds
        progress.epoch += 1
        progress.batch, progress.totals, progress.epoch_seconds = 0, MetricSums(), 0.0
        if self.is_over or not self.saver.is_busy:  # else a slow disk would slow down training
            self._save(epoch_is_done=True)
        self.reporter.epoch(self, row)
        if not self.is_over:
            self._stop_if_asked()

    def _after_batch(self, num_batches_done: int) -> None:
        self.progress.batch = num_batches_done
        self.reporter.batch(self)
        if num_batches_done == self.num_batches:
            return  # the epoch's end saves and stops
        is_due = time.monotonic() - self.last_save > self.config.run.save_every_seconds
        if not self.saver.is_busy and is_due:
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        number = all_reduce_max(self.reporter.stop_signal() or 0)
        if not number:
            return
        self._save(epoch_is_done=not self.progress.batch)
        self._write_record("stopped")
        raise StoppedError(
            f"stopped in epoch {self.progress.epoch} after batch {self.progress.batch} of "
            f"{self.num_batches}; continue with: mnist-ce train --resume {self.run.path}",
            number,
        )

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights to use so far, float32 on the CPU."""
        return {
            name: tensor.to("cpu", copy=True) for name, tensor in self.step.eval_weights().items()
        }

    def _measured(self, *, test: bool) -> EpochMetrics:
        """Return the results on the validation and test images, where they are due."""
        if not test and self.task.validation is None:
            return {}
        hidden, weights = self.config.model.hidden, self.step.eval_weights()
        return broadcast_from_main(
            lambda: measure(self.task, hidden, weights, self.device, test=test)
        )

    def _save(self, *, epoch_is_done: bool = False) -> None:
        progress = self.progress
        if progress.batch:
            progress.totals = self.step.metrics()
            progress.epoch_seconds = time.perf_counter() - self.epoch_began
        progress.wall_seconds = time.perf_counter() - self.began
        self.last_save = time.monotonic()
        if not is_main():
            return
        weights = self.weights() if epoch_is_done else None
        best, self.unsaved_best = self.unsaved_best, None
        has_new_rows = len(progress.rows) > self.num_saved_rows
        self.num_saved_rows = len(progress.rows)
        self.saver.save(
            Snapshot(self.step.state(), progress.to_plain(), weights, best, has_new_rows)
        )

    def _write_record(self, status: str) -> None:
        self.record["status"] = status
        self.saver.write(self.run.write_record, self.record)

    def _finish(self) -> TrainResult:
        progress = self.progress
        if "test_accuracy" not in progress.rows[-1]:  # patience ended the run
            hidden, weights = self.config.model.hidden, self.step.eval_weights()
            progress.rows[-1] |= measure(self.task, hidden, weights, self.device, test=True)
        weights = self.weights()
        progress.wall_seconds = time.perf_counter() - self.began
        self.record |= results(progress, weights_sha256(weights))
        self.saver.write(save_tensors, self.run.model_path, weights)
        self.saver.write(self.run.write_metrics, progress.rows)
        self._write_record("finished")
        kept = load_state_dict(self.run.model_path)
        if weights_sha256(kept) != self.record["weights_sha256"]:
            raise RunError(f"{self.run.model_path} does not hold what was written to it")
        model = MLP(self.config.model.hidden, self.task.num_outputs)
        model.load_state_dict(kept)
        return TrainResult(self.run, self.record, progress.rows, model.eval())

    def _draw_plots(self) -> None:
        again = f"draw them with: mnist-ce report {self.run.path}"
        number = self.reporter.stop_signal()
        if number is not None:
            raise StoppedError(f"the run is complete, but its pictures are not: {again}", number)
        try:
            draw_plots(self.run, self.task)
        except Exception as error:  # whatever it was: the run itself is complete
            logger.warning(
                f"the run is complete, but its pictures are not: {one_line(error)}; {again}"
            )


def train_one_epoch(
    step: Step,
    batches: DeviceLoader,
    epoch: int,
    learning_rate: Callable[[int], float],
    *,
    first_batch: int = 0,
    after_batch: Callable[[int], None] = lambda number: None,
) -> MetricSums:
    """Show every training image to the network once.

    Args:
        step: What one optimisation step does.
        batches: The training images.
        epoch: Counted from 1; with the seed it makes the order.
        learning_rate: The rate of a step, by its number since the run began.
        first_batch: Where to go on in an interrupted epoch.
        after_batch: Called with the number of batches done.

    Returns:
        The sums over the epoch's examples, taken as each batch was trained on.
    """
    for number, indices in enumerate(batches.epoch(epoch, first_batch), start=first_batch + 1):
        step(indices, learning_rate(step.num_steps))
        after_batch(number)
    return step.metrics()
