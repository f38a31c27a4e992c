"""What a run needs before its first step, made from its config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mnist_ce.config import Config
from mnist_ce.data.dataset import DataSplits, Split, load_splits
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.upstrokes import add_upstrokes
from mnist_ce.network.model import MLP
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.training.steps import OptimizerSettings, Step, make_step

__all__ = ["config_tables", "first_batch", "load_run_task", "make_batches", "make_run_step"]


def load_run_task(config: Config, before: dict[str, Any] | None) -> DataSplits:
    """Load the data; of a run that is continued, the same as before."""
    data = config.data
    if before is not None:
        data = data.model_copy(update={"dataset": str(before.get("dataset"))})
    task = load_splits(data, config.objective, config.train.seed)
    if before is not None and before.get("dataset_digest") != task.digest:
        raise RunError(
            f"run {before.get('name')} was trained on other data than this {task.dataset}"
        )
    if share := config.augment.upstroke_ones:
        if "1" not in task.class_names or task.num_outputs == 1:
            raise UsageError(f"augment.upstroke_ones = {share}, but no class is called 1")
        label = task.class_names.index("1")
        task = replace(task, train=add_upstrokes(task.train, label, share, config.train.seed))
    return task


def first_batch(task: DataSplits, batch_size: int) -> DataSplits:
    """Return a task with no more than one batch of each split."""

    def first(split: Split) -> Split:
        return Split(split.images[:batch_size], split.labels[:batch_size])

    return replace(
        task,
        train=first(task.train),
        validation=first(task.validation) if task.validation else None,
        test=first(task.test),
    )


def make_batches(
    config: Config, train: Split, device: torch.device, num_epochs: int
) -> DeviceLoader:
    """Put the training images on the device, to be served as the config says."""
    return DeviceLoader(
        train.images.to(device),
        train.labels.to(device),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        augment=config.augment,
        last_augmented_epoch=num_epochs - config.augment.final_epochs,
    )


def make_run_step(
    config: Config, kind: str, model: MLP, batches: DeviceLoader, task: DataSplits
) -> Step:
    """Build the optimisation step that the config describes."""
    settings = OptimizerSettings(
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        weight_decay=config.optimizer.weight_decay,
        average_decay=config.average.decay,
    )
    return make_step(kind, model, batches, task.objective, settings)


def config_tables(config: Config) -> dict[str, Any]:
    """Return the config as tables, without a name, so that feeding it back makes a new run."""
    tables = config.to_dict()
    del tables["run"]["name"]
    return tables
