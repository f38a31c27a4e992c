"""Training: a run from its config to its files."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_ce.config import Config, recipe_name, resolve_config
from mnist_ce.data.dataset import DataSplits, short_name
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.evaluation.evaluate import SplitResult, predict_split
from mnist_ce.network.model import unwrapped
from mnist_ce.runs.checkpoint import load_state_dict, load_tensors, save_tensors, weights_sha256
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir, check_new_run, create_run
from mnist_ce.runs.train_state import EpochMetrics, MetricSums, Snapshot, TrainState
from mnist_ce.system.device import reproducible, resolve_device, synchronize
from mnist_ce.system.distributed import (
    all_reduce_max,
    broadcast_from_main,
    is_main,
    local_device,
    main_first,
    num_processes,
    process_group,
)
from mnist_ce.system.errors import RunError, StoppedError, TrainingError, UsageError
from mnist_ce.training.callbacks import BatchInfo, Callback, RunInfo, StopFlag, TrainResult
from mnist_ce.training.checkpointing import AsyncCheckpointer, load_progress
from mnist_ce.training.final_plots import draw_final_plots
from mnist_ce.training.metadata import environment_diff, final_metrics, merge_resumed, run_metadata
from mnist_ce.training.schedule import learning_rates
from mnist_ce.training.setup import (
    Custom,
    build_network,
    describe_initial,
    dry_run_errors,
    load_data,
    load_initial,
    open_run,
    truncate_to_one_batch,
)
from mnist_ce.training.step_metrics import StepMetrics
from mnist_ce.training.steps import NonFiniteLossError, OptimizerFactory, choose_step, make_step

logger = logging.getLogger(__name__)

# Several processes agree on a stop request only so often: it costs them an all-reduce.
STOP_INTERVAL_BATCHES = 20


def train(
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
    data: object = None,
    resume: str | None = None,
    dry_run: bool = False,
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
    stop: StopFlag | None = None,
) -> TrainResult:
    """Train the network and keep the run on disk.

    Args:
        config: A config, a TOML file, or the name of a shipped one; None: the defaults.
        settings: Values by dotted key, such as `{"train.epochs": 1}`, laid over `config`.
        model: A module of your own in place of the MLP, trained in place. It maps pixel/255,
            float32 [batch, 1, 28, 28] or [batch, 784], to logits [batch, classes].
        optimizer: A function of the parameters that returns a `torch.optim.Optimizer`, in place of
            the config's section. The schedule begins from the optimizer's own learning rate.
        data: Images and labels in place of the config's dataset: see `custom_dataset`.
        resume: The name or directory of a run to continue, or `latest`.
        dry_run: Train and test on one batch in a temporary directory, and keep nothing.
        recipe: The config's name in the run's name and record.
        callbacks: Called as training goes on.
        stop: A flag that stops training after the current batch.

    Raises:
        UsageError: If the config, or a setting together with the data or the device, is wrong.
        TypeError: If `model`, `optimizer` or `data` is of another type.
        DataError: If the data cannot be loaded.
        RunError: If the run's directory cannot be created or written, or is locked.
        TrainingError: If the loss is not finite, or another of several processes is lost.
        StoppedError: If the flag was set; the state was saved.
    """
    started_at = time.perf_counter()
    settings = {key: value for key, value in (settings or {}).items() if value is not None}
    custom = Custom(copy.deepcopy(model) if dry_run else model, optimizer, data)
    custom.check_settings(settings)
    with process_group(), contextlib.ExitStack() as stack:
        record: RunRecord | None = None
        if resume is not None:
            run, record, config = broadcast_from_main(
                lambda: open_run(stack, resume, settings, custom)
            )
            recipe = record.recipe
        elif not isinstance(config, Config):
            recipe = recipe or recipe_name(config)
            config = resolve_config(config, flags=settings)
        elif settings:
            raise UsageError("give settings with a config's name or file, not with a Config")
        if record is None and not dry_run:
            check_new_run(Path(config.run.output), config.run.name)

        device = resolve_device(local_device(config.train.device))
        is_mlp_with_sgd = model is optimizer is None and config.optimizer.name == "sgd"
        kind = choose_step(config.train.step, device.type, needs_autograd=not is_mlp_with_sgd)
        resolved = config
        initial = main_first(
            lambda: load_initial(resolved, custom, is_resumed=record is not None),
            lambda found: found and found.weights_sha256,
        )
        splits = main_first(lambda: load_data(resolved, record, custom), lambda s: s.digest)
        if dry_run:
            splits = truncate_to_one_batch(splits, config.train.batch_size)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist-ce-"))
            stack.enter_context(dry_run_errors(folder))
            place = config.run.model_copy(update={"output": folder, "name": "dry-run"})
            only_one = config.train.model_copy(update={"epochs": 1})
            config = config.model_copy(update={"run": place, "train": only_one})
        stack.enter_context(reproducible(config.train.seed, config.train.threads))
        if model is not None:  # its kernels may have no deterministic form
            torch.set_deterministic_debug_mode("warn")
        network = build_network(config, custom, splits.num_outputs, initial).to(device)
        trainer = Trainer(config, recipe or "custom", splits, network, kind, custom)
        trainer.started_at = started_at
        if record is None:
            if initial is not None:
                trainer.record = trainer.record.updated(init=describe_initial(config, initial))
            run = broadcast_from_main(lambda: stack.enter_context(trainer.create_run().lock()))
        trainer.run = run
        trainer.checkpointer = stack.enter_context(AsyncCheckpointer(run if is_main() else None))
        if record is not None:
            trainer.resume(record)
        result = trainer.fit(callbacks, stop or StopFlag())
        if is_main() and config.run.plots and config.train.test_every >= 0 and not dry_run:
            test = trainer.test_result or trainer.evaluate("test")
            draw_final_plots(result, splits, test, trainer.stop)
        for callback in callbacks:
            callback.on_end(result)
        return result


class Trainer:
    """The training loop of one run, with its saving, testing and stopping.

    Args:
        config: The resolved config.
        recipe: The config's name.
        splits: The data.
        model: The network, on the device to train on.
        step_kind: The kind of step, of those that `choose_step` returns.
        custom: What is given from Python.
    """

    run: RunDir
    checkpointer: AsyncCheckpointer
    started_at: float

    def __init__(
        self,
        config: Config,
        recipe: str,
        splits: DataSplits,
        model: nn.Module,
        step_kind: str,
        custom: Custom,
    ) -> None:
        self.config, self.splits, self.custom = config, splits, custom
        self.device = next(model.parameters()).device
        self.num_epochs = config.train.epochs
        self.callbacks: Sequence[Callback] = ()
        self.stop = StopFlag()
        # Evaluated by the main process alone, with the averaged weights where averaging is on.
        self._eval_model = copy.deepcopy(model)
        self.loader = DeviceLoader(
            splits.train.images.to(self.device),
            splits.train.labels.to(self.device),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            augment=config.augment,
            last_augmented_epoch=self.num_epochs - config.augment.final_epochs,
            num_shares=config.train.shares,
        )
        self.num_batches = len(self.loader)
        settings = (config.optimizer, config.average.decay, custom.optimizer)
        self.step = make_step(step_kind, model, self.loader, splits.objective, *settings)
        self.learning_rate = learning_rates(
            config.schedule, self.step.highest_rate, self.num_epochs, self.num_batches
        )
        self.record = run_metadata(config, recipe, splits, model, self.device, step_kind)
        if custom.names:
            self.record = self.record.updated(custom=custom.names)
        self.state = TrainState()
        self.test_result: SplitResult | None = None
        self._pending_best: dict[str, Tensor] | None = None
        self._num_saved_rows = 0
        self._last_save = time.monotonic()
        self._eval_images = {
            split: images.images.to(self.device)
            for split, images in (("validation", splits.validation), ("test", splits.test))
            if images is not None and is_main()
        }

    def create_run(self) -> RunDir:
        """Create the directory of a new run, with its config and record."""

        def write_files(run: RunDir, name: str) -> None:
            self.record = self.record.updated(name=name)
            run.write_config(self._config_tables())
            run.write_record(self.record)
            if self.record.init:  # resuming does not read that checkpoint again
                Snapshot(self.step.state(), self.state.model_dump()).write(run)

        dataset = short_name(self.splits.dataset)
        stem = f"{dataset}-{self.record.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        return create_run(Path(self.config.run.output), self.config.run.name, stem, write_files)

    def resume(self, before: RunRecord) -> None:
        """Continue from the last snapshot of a run; from its beginning, if it has none."""
        changed = environment_diff(before, self.record)
        self.record = merge_resumed(before, self.record).updated(status=RunState.RUNNING)
        found = broadcast_from_main(
            lambda: load_progress(self.run, self.step, self.config, self.num_batches)
        )
        if found is not None:
            step_state, self.state = found
            self.step.load_state(step_state)
            self.started_at -= self.state.wall_seconds
        if self.is_over:
            epochs = len(self.state.rows)
            logger.info(f"run {self.run.path} is complete after {epochs} epochs")
        elif changed and self.step.num_steps:
            logger.warning(
                "the weights may differ in their last bits from those of an uninterrupted run, "
                f"since this has changed: {'; '.join(changed)}"
            )
        self.checkpointer.write(self.run.write_config, self._config_tables())
        self._write_record(RunState.RUNNING)
        self.checkpointer.write(self.run.truncate_steps, self.step.num_steps)
        if self.state.rows:
            self.checkpointer.write(self.run.write_metrics, self.state.rows)

    def _config_tables(self) -> dict[str, Any]:
        """The config without the run's name, so that feeding it back makes a new run."""
        tables = self.config.to_dict()
        del tables["run"]["name"]
        return tables

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or no epoch within `train.patience` was the best."""
        patience = self.config.train.patience
        out_of_patience = patience and len(self.state.rows) - self.state.best_epoch >= patience
        return self.state.epoch > self.num_epochs or bool(out_of_patience)

    def fit(self, callbacks: Sequence[Callback], stop: StopFlag) -> TrainResult:
        """Train until the last epoch is done, then write the final files."""
        self.callbacks, self.stop = callbacks, stop
        interval = self.config.run.log_interval
        self.step_metrics = StepMetrics(self.step, self.state, self.checkpointer, interval)
        info = RunInfo(
            run=self.run,
            config=self.config,
            dataset=self.splits.dataset,
            num_images=len(self.splits.train),
            num_batches=self.num_batches,
            num_epochs=self.num_epochs,
            epoch=self.state.epoch,
            step=str(self.record.step),
            num_workers=self.step.num_workers,
            device=str(self.device),
        )
        self.stop.is_checked = True
        for callback in self.callbacks:
            callback.on_start(info)
        try:
            while not self.is_over:
                self._train_epoch()
        except NonFiniteLossError as error:
            with contextlib.suppress(NonFiniteLossError):
                self.step_metrics.flush()
            self._write_record(RunState.FAILED)
            rate = self.config.optimizer.learning_rate
            raise TrainingError(
                f"the loss is {error.loss} in epoch {self.state.epoch}, batch "
                f"{error.step % self.num_batches + 1} of {self.num_batches}. Start a new run "
                f"with a lower rate, such as --lr {rate / 10:g}: resuming would fail again"
            ) from None
        result = broadcast_from_main(self._finish)
        self.stop.is_checked = False
        return result

    def _train_epoch(self) -> None:
        state = self.state
        self.step.reset_metrics(state.totals)
        epoch_started_at = time.perf_counter() - state.epoch_seconds
        first = state.batch + 1
        for batch, indices in enumerate(self.loader.epoch(state.epoch, state.batch), start=first):
            rate = self.learning_rate(self.step.num_steps)
            self.step(indices, rate)
            state.batch = batch
            self.step_metrics.on_step(rate, is_last=batch == self.num_batches)
            state.epoch_seconds = time.perf_counter() - epoch_started_at
            info = BatchInfo(state.epoch, batch, state.epoch_seconds, self.step.metrics)
            for callback in self.callbacks:
                callback.on_batch(info)
            if batch < self.num_batches:  # the end of the epoch saves and stops by itself
                self._save_if_due()
                self._stop_if_requested()
        sums = self.step.metrics()
        synchronize(self.device)
        self._end_epoch(sums, time.perf_counter() - epoch_started_at)

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
        every, is_last = self.config.train.test_every, state.epoch == self.num_epochs
        tests = every >= 0 and (is_last or (every > 0 and state.epoch % every == 0))
        row |= broadcast_from_main(lambda: self._validate(test=tests))
        best = state.best_row
        if self.splits.validation is not None and (best is None or _rank(row) > _rank(best)):
            state.best_epoch = state.epoch
            self._pending_best = self._eval_weights()
        state.rows.append(row)
        state.train_seconds += seconds
        state.epoch += 1
        state.batch, state.epoch_seconds = 0, 0.0
        state.totals, state.logged = MetricSums(), MetricSums()
        if self.is_over or not self.checkpointer.is_busy():  # a slow disk delays no training
            self._save(epoch_is_done=True)
        for callback in self.callbacks:
            callback.on_epoch(row)
        if not self.is_over:
            self._stop_if_requested()

    def _validate(self, *, test: bool) -> EpochMetrics:
        """Evaluate on the validation split, where there is one, and the test split where due."""
        row: EpochMetrics = {}
        if self.splits.validation is not None:
            result = self.evaluate("validation")
            row |= {"validation_loss": result.loss, "validation_accuracy": result.accuracy}
        if test:
            self.test_result = result = self.evaluate("test")
            row |= {
                "test_loss": result.loss,
                "test_accuracy": result.accuracy,
                "test_correct": result.num_correct,
                "test_total": result.num_examples,
            }
        return row

    def evaluate(self, split: str) -> SplitResult:
        """Evaluate the current weights on a split of the data."""
        unwrapped(self._eval_model).load_state_dict(self.step.eval_weights())
        labels, images = self.splits.split(split).labels, self._eval_images[split]
        result = predict_split(self._eval_model, images, labels, self.splits.objective)
        if not math.isfinite(result.loss):  # the epoch's last update was too large
            raise NonFiniteLossError(self.step.num_steps - 1, result.loss)
        return result

    def _eval_weights(self) -> dict[str, Tensor]:
        return {
            name: tensor.to("cpu", copy=True) for name, tensor in self.step.eval_weights().items()
        }

    def _save_if_due(self) -> None:
        is_due = time.monotonic() - self._last_save > self.config.run.save_every_seconds
        if is_due and not self.checkpointer.is_busy():
            self._save()

    def _save(self, *, epoch_is_done: bool = False) -> None:
        state = self.state
        if state.batch:
            state.totals = self.step.metrics()
            self.step_metrics.flush()
        state.wall_seconds = time.perf_counter() - self.started_at
        self._last_save = time.monotonic()
        if not is_main():
            return
        weights = self._eval_weights() if epoch_is_done else None
        has_new_rows = len(state.rows) > self._num_saved_rows
        step_state, best = self.step.state(), self._pending_best
        self._pending_best, self._num_saved_rows = None, len(state.rows)
        self.checkpointer.save(
            Snapshot(step_state, state.model_dump(), weights, best, has_new_rows)
        )

    def _stop_if_requested(self) -> None:
        batch = self.state.batch
        if num_processes() > 1 and batch % STOP_INTERVAL_BATCHES:
            return
        if not (signal_number := all_reduce_max(self.stop.signal_number or 0)):
            return
        self._save(epoch_is_done=not batch)
        self._write_record(RunState.STOPPED)
        raise StoppedError(
            f"stopped in epoch {self.state.epoch} after batch {batch} of {self.num_batches}; "
            f"continue with: mnist-ce train --resume {self.run.path}",
            signal_number,
        )

    def _write_record(self, status: RunState) -> None:
        self.record = self.record.updated(status=status)
        self.checkpointer.write(self.run.write_record, self.record)

    def _finish(self) -> TrainResult:
        rows = self.state.rows
        if "test_accuracy" not in rows[-1] and self.config.train.test_every >= 0:  # out of patience
            rows[-1] |= self._validate(test=True)
        weights = self._eval_weights()
        self.state.wall_seconds = time.perf_counter() - self.started_at
        self.record = self.record.updated(**final_metrics(self.state, weights_sha256(weights)))
        self.checkpointer.write(save_tensors, self.run.model_path, weights)
        self.checkpointer.write(self.run.write_metrics, rows)
        self._write_record(RunState.FINISHED)
        model = self.custom.model
        kept = (load_state_dict if model is None else load_tensors)(self.run.model_path)
        if weights_sha256(kept) != self.record.weights_sha256:
            raise RunError(f"{self.run.model_path} does not hold what was written to it")
        model = (copy.deepcopy(self._eval_model) if model is None else model).cpu().eval()
        model.load_state_dict(kept)
        return TrainResult(self.run, self.record, rows, model)


def _rank(row: EpochMetrics) -> tuple[float, float]:
    """Order validation results: by accuracy, then by loss."""
    return row["validation_accuracy"], -row["validation_loss"]
