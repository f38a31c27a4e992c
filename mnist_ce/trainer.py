"""One run, from loaded data to the last file."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_ce.checkpoint import load_state_dict, load_tensors, save_tensors, weights_sha256
from mnist_ce.config import Config
from mnist_ce.data.augment import Augment
from mnist_ce.data.batches import Batches
from mnist_ce.data.splits import Split
from mnist_ce.device import device_name, environment, reproducible, resolve_device, synchronize
from mnist_ce.errors import RunError, StoppedError, TrainingError
from mnist_ce.files import one_line
from mnist_ce.loop import Evaluation, evaluate, train_one_epoch
from mnist_ce.model import MLP
from mnist_ce.progress import Progress, Reporter, Row
from mnist_ce.records import FORMAT_VERSION, Run, git_commit, run_name, timestamp
from mnist_ce.report import draw_plots
from mnist_ce.schedule import learning_rates
from mnist_ce.steps import (
    NonFiniteLossError,
    OptimizerSettings,
    Step,
    Totals,
    choose_step,
    make_step,
)
from mnist_ce.task import Task, load_task

__all__ = ["TrainResult", "Trainer"]


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        run: Its folder (gone again after a dry run).
        record: What `run.json` holds.
        rows: What `metrics.csv` holds.
        model: The trained network, on the CPU.
    """

    run: Run
    record: dict[str, Any]
    rows: list[Row]
    model: MLP


class Trainer:
    """One run, from loaded data to the last file.

    Args:
        config: The resolved config.
        reporter: Who is told what happens.
        recipe: What the config is called.
        first_batch_only: Keep one batch of each split.
    """

    run: Run
    step: Step
    record: dict[str, Any]

    def __init__(
        self, config: Config, reporter: Reporter, recipe: str, *, first_batch_only: bool = False
    ) -> None:
        self.began = time.perf_counter()
        self.config = config
        self.reporter = reporter
        self.recipe = recipe
        self.device = resolve_device(config.train.device)
        self.step_kind = choose_step(config.train.step, self.device.type)
        self.task = _load_task(config, reporter)
        self.num_epochs = config.train.epochs
        self.draws_plots = config.run.plots and not first_batch_only
        if first_batch_only:
            self.task = _first_batch(self.task, config.train.batch_size)
            self.num_epochs = 1
        self.progress = Progress()
        self.last_save = time.monotonic()

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return -(-len(self.task.train) // self.config.train.batch_size)

    def start(self, output: Path, name: str) -> Trainer:
        """Make the run's folder."""
        self.run = Run.create(output, name or run_name(output, self.task.dataset, self.recipe))
        self.record = {
            "format_version": FORMAT_VERSION,
            "name": self.run.name,
            "recipe": self.recipe,
            "created": timestamp(),
        }
        return self

    def resume(self, run: Run) -> Trainer:
        """Take up an interrupted run."""
        self.run = run
        self.record = run.read_record() or {}
        self.recipe = self.record.get("recipe", self.recipe)
        if self.record.get("dataset_digest") != self.task.digest:
            raise RunError(
                f"run {run.path} was trained on other data than this {self.task.dataset}"
            )
        return self

    def run_to_end(self) -> TrainResult:
        """Train, test and write until the last epoch is done."""
        with reproducible(self.config.train.seed, self.config.train.threads):
            self._prepare()
            self.reporter.start(self)
            try:
                while self.progress.epoch <= self.num_epochs and not self._out_of_patience():
                    self._run_epoch()
            except NonFiniteLossError as error:
                self._write(self._write_record, "failed")
                raise TrainingError(
                    f"the loss is {error.loss} in epoch {self.progress.epoch}, batch "
                    f"{error.step % self.num_batches + 1} of {self.num_batches}; the update was "
                    f"not made, and {self.run.path} keeps what was saved before. Try a lower "
                    "--lr"
                ) from None
            result = self._finish()
        if self.draws_plots:
            self._draw_plots()
        self.reporter.finish(self, result)
        return result

    def _draw_plots(self) -> None:
        try:
            draw_plots(self.run, self.task)
        except Exception as error:  # whatever it was: the run itself is complete
            self.reporter.warn(
                f"the run is complete, but its pictures are not: {one_line(error)}; "
                f"draw them with: mnist-ce report {self.run.path}"
            )

    def _prepare(self) -> None:
        config, task = self.config, self.task
        model = MLP(config.model.hidden, task.num_outputs).to(self.device)
        self.model = model
        self.batches = Batches(
            task.train.images.to(self.device),
            task.train.labels.to(self.device),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            augment=_strengths(config),
            last_augmented_epoch=self.num_epochs - config.augment.final_epochs,
        )
        self.learning_rate = learning_rates(
            config.schedule, config.optimizer.learning_rate, self.num_epochs, self.num_batches
        )
        self.step = make_step(
            self.step_kind,
            model,
            self.batches,
            task.objective,
            OptimizerSettings(
                momentum=config.optimizer.momentum,
                nesterov=config.optimizer.nesterov,
                weight_decay=config.optimizer.weight_decay,
                average_decay=config.average.decay,
            ),
        )
        if self.run.resume_path.exists():
            self._load_progress()
        self.record |= self._description()
        tables = config.to_dict()
        del tables["run"]["name"]  # so that feeding the file back makes a new run
        self._write(self.run.write_config, tables)
        self._write(self._write_record, "running")

    def _run_epoch(self) -> None:
        progress = self.progress
        self.step.start_epoch(progress.totals)
        self.epoch_began = time.perf_counter() - progress.epoch_seconds
        train_one_epoch(
            self.step,
            self.batches,
            progress.epoch,
            self.learning_rate,
            first_batch=progress.batch,
            after_batch=self._after_batch,
        )
        totals = self.step.totals()
        synchronize(self.device)
        seconds = time.perf_counter() - self.epoch_began
        row: Row = {
            "epoch": progress.epoch,
            "train_loss": totals.loss,
            "train_accuracy": totals.accuracy,
            "learning_rate": self.learning_rate(self.step.num_steps - 1),
            "seconds": round(seconds, 4),
            "images_per_second": round(totals.num_examples / seconds, 1),
        }
        self._measure(row)
        progress.rows.append(row)
        progress.train_seconds += seconds
        self._keep_best(row)
        progress.epoch += 1
        progress.batch, progress.totals, progress.epoch_seconds = 0, Totals(), 0.0
        self._write(self.run.write_metrics, progress.rows)
        self._write(save_tensors, self.run.model_path, self.weights())
        self._save_progress()
        self.reporter.epoch(self, row)
        self._stop_if_asked()

    def _after_batch(self, num_batches_done: int) -> None:
        self.progress.batch = num_batches_done
        self.reporter.batch(self)
        if num_batches_done == self.num_batches:
            return  # the epoch's end saves anyway
        if time.monotonic() - self.last_save > self.config.run.save_every_seconds:
            self._save_progress()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        number = self.reporter.stop_signal()
        if number is None or self.progress.epoch > self.num_epochs:
            return
        self._save_progress()
        self._write(self._write_record, "stopped")
        raise StoppedError(
            f"stopped in epoch {self.progress.epoch} after batch {self.progress.batch} of "
            f"{self.num_batches}; continue with: mnist-ce train --resume {self.run.path}",
            number,
        )

    def weights(self) -> dict[str, Any]:
        """Return the weights to use so far, float32 on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.step.weights().items()}

    def _measure(self, row: Row) -> None:
        """Add the results on the validation and test images, where they are due."""
        every = self.config.train.test_every
        is_last = row["epoch"] == self.num_epochs
        test_is_due = is_last or (every and row["epoch"] % every == 0)
        if not (test_is_due or self.task.validation):
            return
        model = MLP(self.config.model.hidden, self.task.num_outputs).to(self.device)
        model.load_state_dict(self.step.weights())
        if self.task.validation:
            result = self._evaluate(model, self.task.validation)
            row["validation_loss"], row["validation_accuracy"] = result.loss, result.accuracy
        if test_is_due:
            result = self._evaluate(model, self.task.test)
            row |= {
                "test_loss": result.loss,
                "test_accuracy": result.accuracy,
                "test_correct": result.num_correct,
                "test_total": result.num_examples,
            }

    def _evaluate(self, model: MLP, split: Split) -> Evaluation:
        images = split.images.to(self.device)
        return evaluate(model, images, split.labels, self.task.objective)

    def _keep_best(self, row: Row) -> None:
        """Keep the weights of the best validation epoch: accuracy first, then loss."""
        if self.task.validation is None:
            return
        best = self.progress.best_row
        if best is None or _quality(row) > _quality(best):
            self.progress.best_epoch = row["epoch"]
            self._write(save_tensors, self.run.best_path, self.weights())

    def _out_of_patience(self) -> bool:
        patience = self.config.train.patience
        return bool(patience) and len(self.progress.rows) - self.progress.best_epoch >= patience

    def _finish(self) -> TrainResult:
        rows, progress = self.progress.rows, self.progress
        if rows and rows[-1].get("test_accuracy") is None:  # patience ended the run
            self._measure_last()
        weights = self.weights()
        self.record |= {
            "epochs_done": len(rows),
            "train_seconds": round(progress.train_seconds, 3),
            "wall_seconds": round(time.perf_counter() - self.began, 3),
            "weights_sha256": weights_sha256(weights),
            **{key: rows[-1].get(key) for key in _FINAL_KEYS},
        }
        if progress.best_epoch:
            self.record["best_epoch"] = progress.best_epoch
            self.record["best_validation_accuracy"] = rows[progress.best_epoch - 1][
                "validation_accuracy"
            ]
        self._write(save_tensors, self.run.model_path, weights)
        self._write(self._write_record, "finished")
        kept = load_state_dict(self.run.model_path)
        if weights_sha256(kept) != self.record["weights_sha256"]:
            raise RunError(f"{self.run.model_path} does not hold what was written to it")
        model = MLP(self.config.model.hidden, self.task.num_outputs)
        model.load_state_dict(kept)
        return TrainResult(self.run, self.record, rows, model.eval())

    def _measure_last(self) -> None:
        row = self.progress.rows[-1]
        self.num_epochs = row["epoch"]
        self._measure(row)
        self._write(self.run.write_metrics, self.progress.rows)

    def _description(self) -> dict[str, Any]:
        config, task = self.config, self.task
        return {
            "dataset": task.dataset,
            "dataset_digest": task.digest,
            "class_names": list(task.class_names),
            "objective": config.objective.kind,
            "versions": environment(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "step": self.step_kind,
            "seed": config.train.seed,
            "command": sys.argv,
            "git_commit": git_commit(),
            "epochs": self.num_epochs,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "config": config.to_dict(),
        }

    def _save_progress(self) -> None:
        progress = self.progress
        if progress.batch:
            progress.totals = self.step.totals()
            progress.epoch_seconds = time.perf_counter() - self.epoch_began
        state = {
            "format_version": FORMAT_VERSION,
            "step": self.step.state(),
            "progress": dataclasses.asdict(progress),
        }
        self._write(save_tensors, self.run.resume_path, state)
        self.last_save = time.monotonic()

    def _load_progress(self) -> None:
        state = load_tensors(self.run.resume_path)
        try:
            self.step.load_state(state["step"])
            values = dict(state["progress"])
            self.progress = Progress(**{**values, "totals": Totals(**values["totals"])})
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"{self.run.resume_path} does not belong to this run: {one_line(error)}"
            ) from None

    def _write_record(self, status: str) -> None:
        self.record["status"] = status
        self.run.write_record(self.record)

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        try:
            write(*arguments)
        except OSError as error:
            raise RunError(
                f"run folder {self.run.path} cannot be written: {one_line(error)}; "
                "what was saved before is intact"
            ) from None


_FINAL_KEYS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "test_correct",
    "test_total",
)


def _quality(row: Row) -> tuple[float, float]:
    return row["validation_accuracy"], -row["validation_loss"]


def _load_task(config: Config, reporter: Reporter) -> Task:
    return load_task(
        config.data.dataset,
        Path(config.data.dir),
        mirror=config.data.mirror or None,
        classes=config.data.classes,
        validation_size=config.data.validation_size,
        seed=config.train.seed,
        kind=config.objective.kind,
        positive=config.objective.positive,
        label_smoothing=config.objective.label_smoothing,
        warn=reporter.warn,
        progress=reporter.progress,
    )


def _first_batch(task: Task, batch_size: int) -> Task:
    def first(split: Split) -> Split:
        return Split(split.images[:batch_size], split.labels[:batch_size])

    return dataclasses.replace(
        task,
        train=first(task.train),
        validation=first(task.validation) if task.validation else None,
        test=first(task.test),
    )


def _strengths(config: Config) -> Augment:
    values = config.augment.model_dump()
    del values["final_epochs"]
    return Augment(**values)
