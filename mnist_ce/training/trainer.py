"""Training: a run from its config to its files."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from mnist_ce.config import Config, ScheduleConfig, recipe_name, resolve_config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import EvaluationReport, SplitResult, predict_split
from mnist_ce.network.model import as_module, unwrapped
from mnist_ce.report.report import draw_plots
from mnist_ce.runs.checkpoint import weights_sha256
from mnist_ce.runs.groups import definition
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import RESULTS, RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir, check_new_run
from mnist_ce.runs.train_state import EpochMetrics, MetricSums, Snapshot, TrainState
from mnist_ce.system.device import reproducible, resolve_device
from mnist_ce.system.distributed import all_reduce, from_main, is_main, main_first, process_group
from mnist_ce.system.errors import RunError, StoppedError, TrainingError, UsageError
from mnist_ce.system.notebook import LinePrinter, printed_by
from mnist_ce.system.text import one_line
from mnist_ce.training.callbacks import (
    BatchInfo,
    Callback,
    ProgressCallback,
    RunInfo,
    StopFlag,
    TrainResult,
)
from mnist_ce.training.setup import (
    AsyncCheckpointer,
    Custom,
    Setup,
    as_dry_run,
    new_run,
    reopen_run,
)
from mnist_ce.training.steps import NonFiniteLossError, OptimizerFactory, Step

logger = logging.getLogger(__name__)


def train(
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | str | None = None,
    optimizer: OptimizerFactory | None = None,
    data: object = None,
    resume: str | None = None,
    dry_run: bool = False,
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
    stop: StopFlag | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train the network and keep the run on disk.

    Args:
        config: A config, a TOML file, or the name of a shipped recipe; None: the defaults.
        settings: Values by dotted key, such as `{"train.epochs": 1}`, laid over the config.
        model: A module of your own in place of the MLP, trained in place: see `load_model`.
        optimizer: A function of the parameters that returns a `torch.optim.Optimizer`, in place of
            the config's section. The schedule begins from the optimizer's own learning rate.
        data: Images and labels in place of the config's dataset: see `custom_dataset`.
        resume: The name or directory of a run to continue, or `latest`.
        dry_run: Train and test on one batch in a temporary directory, and keep nothing.
        recipe: The config's name in the run's name and record.
        callbacks: Called as training goes on.
        stop: A flag that stops training after the current batch.
        progress: Print a line per epoch and what else is logged, and show a bar on a terminal or
            in a notebook.

    Raises:
        UsageError, TypeError: If an argument or a setting is wrong.
        DataError: If the data cannot be loaded.
        RunError: If the run's directory cannot be created or written, or is locked.
        TrainingError: If the loss is not finite, or one of several processes has failed.
        StoppedError: If the flag was set; the state was saved.
    """
    started_at = time.perf_counter()
    stop = stop or StopFlag()
    settings = {key: value for key, value in (settings or {}).items() if value is not None}
    module = None if model is None else as_module(model)
    custom = Custom(copy.deepcopy(module) if dry_run else module, optimizer, data)
    custom.check_settings(settings)
    with process_group(), contextlib.ExitStack() as stack:
        if progress:
            if not logger.isEnabledFor(logging.INFO):  # else logging is set up to show it
                stack.enter_context(printed_by(LinePrinter(), propagate=False))
            callbacks = [ProgressCallback(), *callbacks]
        for callback in callbacks:
            stack.callback(callback.close)
        before: RunRecord | None = None  # of a run that is resumed
        if resume is not None:
            if dry_run:
                raise UsageError("a dry run is of a new run: leave out what to resume")
            reopened = reopen_run(resume, settings, custom)
            run, before, resolved = from_main(lambda: stack.enter_context(reopened))
            recipe = before.recipe
        elif isinstance(config, Config):
            resolved = resolve_config(config.flat(), flags=settings, environment={})
        else:
            recipe = recipe or recipe_name(config)
            resolved = resolve_config(config, flags=settings)
        if before is None:
            check_new_run(Path(resolved.run.output), resolved.run.name)
        setup = Setup(resolved, recipe or "custom", custom, before)
        device = resolve_device(resolved.train.device)
        initial, splits = main_first(setup.load, digest=lambda loaded: loaded[1].digest)
        if dry_run:
            setup, splits = stack.enter_context(as_dry_run(setup, splits))

        seed, threads = resolved.train.seed, resolved.train.threads
        stack.enter_context(reproducible(seed, threads, warn_only=model is not None))
        step = setup.build_step(device, splits, initial)
        record, state = setup.new_record(splits, step, initial), TrainState()
        if before is None:
            run = from_main(lambda: stack.enter_context(new_run(setup.config, record, step)))
            record = record.updated(name=run.name)
        checkpointer = stack.enter_context(AsyncCheckpointer(run if is_main() else None))
        if before is not None:
            record, state = setup.restore(run, before, record, step, checkpointer)

        parts = (setup.config, run, record, splits, step, state, checkpointer)
        trainer = Trainer(*parts, callbacks, stop, started_at)
        if not record.is_finished:  # as a run is that was complete when it was resumed
            trainer.fit()

        record = trainer.record
        trained = from_main(lambda: load_model(run.model_path, model=custom.model))
        if trained.weights_sha256 != record.weights_sha256:
            raise RunError(f"{run.model_path} does not hold what was written to it")
        if is_main() and trainer.test_result is not None and setup.config.run.plots:
            tested = (splits.class_names, trainer.test_result, splits.test.images)
            report = EvaluationReport(trained, splits.dataset, "test", *tested)
            try:
                draw_plots(run, record, trained.model, report)
            except Exception as error:  # whatever it is: the run itself is complete
                advice = f"draw them with: mnist-ce report {run.path}"
                logger.warning(f"the run's plots are not drawn: {one_line(error)}; {advice}")
        result = TrainResult(run, record, state.rows, unwrapped(trained.model).cpu())
        if progress and not dry_run:
            logger.info(f"kept in {run.path}")
        return result


@dataclass
class Trainer:
    """The training loop of one run, new or resumed, with its saving, testing and stopping."""

    config: Config
    run: RunDir
    record: RunRecord
    splits: DataSplits
    step: Step  # with the network and the training images
    state: TrainState  # the position in the epochs
    checkpointer: AsyncCheckpointer
    callbacks: Sequence[Callback]
    stop: StopFlag
    started_at: float  # when the work on this run began, by `time.perf_counter`

    def __post_init__(self) -> None:
        self.loader = self.step.loader
        self.learning_rate = learning_rates(
            self.config.schedule, self.step.highest_rate, self.config.train.epochs, len(self.loader)
        )
        self.started_at -= self.state.wall_seconds
        # Gets the averaged weights where averaging is on, and is evaluated by the main process.
        self._eval_model = copy.deepcopy(self.step.model)
        self._unsaved_best: dict[str, Tensor] | None = None
        self.test_result: SplitResult | None = None  # the last one
        self._saved_at = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.state.is_over(self.config.train.epochs, self.config.train.patience)

    def fit(self) -> None:
        numbers = (len(self.splits.train), len(self.loader), self.state.epoch)
        info = RunInfo(self.run, self.config, self.record, *numbers, self.step.num_workers)
        self.stop.is_checked = True
        try:
            for callback in self.callbacks:
                callback.on_start(info)
            while not self.is_over:
                self._train_epoch()
            self._finish()
        except NonFiniteLossError as error:
            rate = self.step.highest_rate
            reason = (
                f"the loss is {error.loss} in epoch {self.state.epoch}, batch "
                f"{error.step % len(self.loader) + 1} of {len(self.loader)}. Start a new run "
                f"with a learning rate below {rate:g}, such as {rate / 10:g}"
            )
            self._write_record(RunState.FAILED, error=reason)
            raise TrainingError(reason) from None
        finally:
            self.stop.is_checked = False

    def _train_epoch(self) -> None:
        state, num_batches = self.state, len(self.loader)
        self.step.sums = state.totals
        epoch_started_at = time.perf_counter() - state.epoch_seconds
        first = state.batch + 1
        for batch, indices in enumerate(self.loader.epoch(state.epoch, state.batch), start=first):
            learning_rate = self.learning_rate(self.step.num_steps)
            self.step(indices, learning_rate)
            state.batch = batch
            if batch % self.config.run.log_interval == 0 or batch == num_batches:
                self._log_metrics(learning_rate)
            state.epoch_seconds = time.perf_counter() - epoch_started_at
            info = BatchInfo(state.epoch, batch, state.epoch_seconds, self.step.sums)
            for callback in self.callbacks:
                callback.on_batch(info)
            if batch < num_batches:  # the end of the epoch saves and stops by itself
                if time.monotonic() - self._saved_at > self.config.run.save_every_seconds and (
                    not self.checkpointer.is_busy()
                ):
                    self._save()
                self._stop_if_requested()
        if self.loader.device.type != "cpu":
            torch.accelerator.synchronize(self.loader.device)
        self._end_epoch(self.step.sums, time.perf_counter() - epoch_started_at)

    def _log_metrics(self, learning_rate: float) -> None:
        """Append a row to `steps.csv`: the means since the row before, in the same epoch."""
        since = self.step.sums - self.state.logged
        values = ",".join(f"{v:.6g}" for v in (since.loss, since.accuracy, learning_rate))
        row = f"{self.step.num_steps},{self.state.epoch},{values}\n"
        self.checkpointer.write(self.run.append_steps, row, wait=False)
        self.state.logged = self.step.sums

    def _end_epoch(self, sums: MetricSums, seconds: float) -> None:
        state = self.state
        row: EpochMetrics = {
            "epoch": state.epoch,
            "train_loss": sums.loss,
            "train_accuracy": sums.accuracy,
            "learning_rate": self.learning_rate(self.step.num_steps - 1),
            "seconds": round(seconds, 4),
            "images_per_second": round(sums.num_examples / seconds, 1),
        }
        self.weights = self.step.eval_weights()
        if not all(bool(tensor.isfinite().all()) for tensor in self.weights.values()):
            raise NonFiniteLossError(self.step.num_steps - 1)  # the last update was too large
        if self.splits.validation is not None:
            result = from_main(lambda: self._predict("validation"))
            row |= {"validation_loss": result.loss, "validation_accuracy": result.accuracy}
            if state.best_row is None or _rank(row) > _rank(state.best_row):
                state.best_epoch = state.epoch
                self._unsaved_best = self.weights
        state.rows.append(row)
        state.train_seconds += seconds
        state.epoch += 1
        state.batch, state.epoch_seconds = 0, 0.0
        state.totals, state.logged = MetricSums(), MetricSums()
        every = self.config.train.test_every
        if every >= 0 and (self.is_over or (every > 0 and row["epoch"] % every == 0)):
            self.test_result = result = from_main(lambda: self._predict("test"))
            row |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
            row |= {"test_correct": result.num_correct, "test_total": result.num_examples}
        if self.is_over or not self.checkpointer.is_busy():  # a slow disk delays no training
            self._save(epoch_is_done=True)
        for callback in self.callbacks:
            callback.on_epoch(row)
        if not self.is_over:
            self._stop_if_requested()

    def _predict(self, split: str) -> SplitResult:
        unwrapped(self._eval_model).load_state_dict(self.weights)
        data = self.splits.split(split)
        images = data.images.to(self.loader.device)
        result = predict_split(self._eval_model, images, data.labels, self.splits.objective)
        if not math.isfinite(result.loss):  # the epoch's last update was too large
            raise NonFiniteLossError(self.step.num_steps - 1, result.loss)
        return result

    def _save(self, *, epoch_is_done: bool = False) -> None:
        state = self.state
        if state.batch:
            state.totals = self.step.sums
        state.wall_seconds = time.perf_counter() - self.started_at
        self._saved_at = time.monotonic()
        weights = self.weights if epoch_is_done else None
        now = (self.step.state(), state.model_dump(), definition(self.record))
        self.checkpointer.save(Snapshot(*now, weights, self._unsaved_best))
        self._unsaved_best = None

    def _stop_if_requested(self) -> None:
        (signal_number,) = all_reduce([self.stop.signal_number or 0], "MAX")
        if not signal_number:
            return
        batch = self.state.batch
        self._save(epoch_is_done=not batch)
        self._write_record(RunState.STOPPED)
        raise StoppedError(
            f"stopped in epoch {self.state.epoch} after batch {batch} of {len(self.loader)}; "
            f"continue with: mnist-ce train --resume {self.run.path}",
            int(signal_number),
        )

    def _write_record(self, status: RunState, **results: Any) -> None:  # noqa: ANN401
        self.record = self.record.updated(status=status, **results)
        self.checkpointer.write(self.run.write_record, self.record)

    def _finish(self) -> None:
        state, last_row = self.state, self.state.rows[-1]
        results: dict[str, Any] = {
            "epochs_done": len(state.rows),
            "train_seconds": round(state.train_seconds, 3),
            "wall_seconds": round(time.perf_counter() - self.started_at, 3),
            "weights_sha256": weights_sha256(self.step.eval_weights()),
            **{key: last_row.get(key) for key in RESULTS if key in EpochMetrics.__annotations__},
        }
        if state.best_row is not None:
            results["best_epoch"] = state.best_epoch
            results["best_validation_accuracy"] = state.best_row["validation_accuracy"]
        self._write_record(RunState.FINISHED, **results)


def _rank(row: EpochMetrics) -> tuple[float, float]:
    return row["validation_accuracy"], -row["validation_loss"]


def learning_rates(
    schedule: ScheduleConfig, learning_rate: float, num_epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the learning rate of each step, counted from 0; `learning_rate` is the highest.

    The scheduler runs once, beforehand, on an optimizer without weights, so that a rate depends on
    nothing but its step: a resumed run needs no scheduler state.
    """
    if schedule.kind == "constant":
        return lambda step: learning_rate
    num_steps = num_epochs * steps_per_epoch
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    scheduler: lr_scheduler.LRScheduler
    if schedule.kind == "step":
        step_size = schedule.step_epochs * steps_per_epoch
        scheduler = lr_scheduler.StepLR(optimizer, step_size, schedule.factor)
    elif schedule.kind == "cosine":
        lowest = learning_rate * schedule.final_fraction
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=lowest)
    else:
        warmup = schedule.warmup_fraction
        if math.isclose(warmup * num_steps, 1):  # OneCycleLR would divide 0 steps by 0
            warmup *= 1 + 1e-6
        scheduler = lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=learning_rate,
            total_steps=num_steps,
            pct_start=warmup,
            anneal_strategy="cos" if schedule.anneal == "cosine" else "linear",
            cycle_momentum=False,
            div_factor=schedule.initial_divisor,
            final_div_factor=schedule.final_divisor,
        )
    rates = []
    with warnings.catch_warnings(action="ignore"):  # of the optimizer, which takes no step
        for _ in range(num_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step()
    return rates.__getitem__
