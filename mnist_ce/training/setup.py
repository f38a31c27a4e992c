"""What a run starts from: its directory, its config, its data, its network and its step."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.custom import custom_dataset
from mnist_ce.data.dataset import DataSplits, load_splits, short_name
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.splits import Split
from mnist_ce.network.model import MLP, check_module
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import INTERRUPTED, RunDir, create_run, find_run, is_shipped
from mnist_ce.runs.train_state import Snapshot, TrainState
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.errors import CheckpointError, RunError, StoppedError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.metadata import config_tables
from mnist_ce.training.steps import FastStep, OptimizerFactory, PlainStep, Step

# The keys that may differ in a resumed run; messages name the first five.
RESUMABLE_KEYS = (
    *("train.epochs", "train.device", "train.threads", "train.step", "data.dir"),
    *("data.mirror", "run.output", "run.log_interval", "run.save_every_seconds", "run.plots"),
)


@dataclass(frozen=True)
class Custom:
    """What `train` is given from Python in place of a part of the config."""

    model: nn.Module | None = None
    optimizer: OptimizerFactory | None = None
    data: object = None

    def __post_init__(self) -> None:
        if self.model is not None:
            check_module(self.model)
            if num_processes() > 1:
                raise UsageError(
                    "a module of your own is trained by one process: leave torchrun out"
                )
        if not callable(self.optimizer) and self.optimizer is not None:
            raise TypeError("optimizer must be a function of the parameters, such as a class")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise a UsageError for a setting that a custom part makes useless."""
        useless = {"model": "model.", "optimizer": "optimizer.", "data": "data.dataset"}
        for name in self.names:
            for key in settings:
                if key.startswith(useless[name]):
                    raise UsageError(f"{key} has no effect beside {name}=…; leave one of them out")

    @property
    def names(self) -> dict[str, str]:
        """The custom parts, by argument, as `run.json` has them."""
        parts = {"model": self.model, "optimizer": self.optimizer, "data": self.data}
        kinds = {
            key: part if hasattr(part, "__qualname__") else type(part)
            for key, part in parts.items()
            if part is not None
        }
        return {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in kinds.items()}


@contextlib.contextmanager
def reopen_run(
    name: str, settings: Mapping[str, Any], custom: Custom
) -> Iterator[tuple[RunDir, RunRecord, Config]]:
    """Lock a run that is to be resumed, and yield it with its record and config."""
    run = find_run(name, Path(settings.get("run.output", Config().run.output)), INTERRUPTED)
    if is_shipped(run):
        raise RunError(f"{name} are shipped weights, which are not continued: see --init")
    with run.lock():
        record = run.read_record()
        if record is None:
            raise RunError(f"run {run.path} cannot be continued: it has no {run.record_path.name}")
        _check_custom(run, record, custom, name)
        config = resolve_config(run.config_path, flags=settings)
        for key in settings:
            if key not in RESUMABLE_KEYS:
                raise UsageError(
                    f"{key} cannot change when a run is continued; only "
                    f"{', '.join(RESUMABLE_KEYS[:5])} can; start a new run for another value"
                )
        epochs = record.epochs or config.train.epochs
        if config.train.epochs != epochs and (reason := _dependence_on_epochs(config)):
            raise UsageError(
                f"run {run.path} cannot get other epochs: {reason} is laid out for {epochs}"
            )
        yield run, record, config


def _check_custom(run: RunDir, record: RunRecord, custom: Custom, name: str) -> None:
    for key in ("model", "optimizer", "data"):
        recorded, present = (record.custom or {}).get(key), custom.names.get(key)
        if recorded and not present:
            raise UsageError(
                f"run {run.path} was trained with {key}={recorded}, given from Python; give it "
                f"again: train(resume={name!r}, {key}=…)"
            )
        if present and not recorded:
            raise UsageError(f"run {run.path} was trained without {key}={present}; leave it out")


def _dependence_on_epochs(config: Config) -> str | None:
    if config.has_fixed_length:
        return f"schedule.kind = '{config.schedule.kind}'"
    if config.augment.final_epochs:
        return f"augment.final_epochs = {config.augment.final_epochs}"
    return None


@contextlib.contextmanager
def new_run(config: Config, record: RunRecord, step: Step) -> Iterator[RunDir]:
    """Create the directory of a new run, with its config and record, and lock it."""

    def write_files(run: RunDir, name: str) -> None:
        run.write_config(config_tables(config))
        run.write_record(record.updated(name=name))
        if record.init:  # resuming does not read that checkpoint again
            Snapshot(step.state(), TrainState().model_dump()).write(run)

    created = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{short_name(str(record.dataset))}-{record.recipe}-{created}"
    with create_run(Path(config.run.output), config.run.name, stem, write_files).lock() as run:
        yield run


def load_data(config: Config, custom: Custom, before: RunRecord | None) -> DataSplits:
    """Load the data of a run; `before` is the record of a resumed one, whose data must be equal."""
    data = config.data
    if before is not None:
        data = data.model_copy(update={"dataset": str(before.dataset)})
    dataset = None if custom.data is None else custom_dataset(custom.data)
    splits = load_splits(data, config.objective, config.train.seed, dataset)
    if before is not None and before.dataset_digest != splits.digest:
        raise RunError(f"run {before.name} was trained on other data than this {splits.dataset}")
    return splits


def load_initial(config: Config, custom: Custom, before: RunRecord | None) -> TrainedModel | None:
    """Load the weights that `train.init` names, into a custom module; None: random weights."""
    name = config.train.init if before is None else ""
    if not name and custom.model is None:
        return None
    try:
        return load_model(name or None, config.run.output, model=custom.model)
    except CheckpointError as error:
        raise CheckpointError(f"train.init: {error}") from None


def build_step(
    kind: str,
    device: torch.device,
    config: Config,
    custom: Custom,
    splits: DataSplits,
    initial: TrainedModel | None,
) -> Step:
    """Build the network of a run, put it and the training images on the device, and make the step.

    Raises:
        UsageError: If `initial` has another shape.
    """
    network = _build_network(config, custom, splits.num_outputs, initial).to(device)
    loader = DeviceLoader(
        splits.train.images.to(device),
        splits.train.labels.to(device),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        augment=config.augment,
        last_augmented_epoch=config.train.epochs - config.augment.final_epochs,
    )
    settings = (network, loader, splits.objective, config.optimizer, config.average.decay)
    if kind == "fast":
        return FastStep(*settings, num_shards=config.train.shares)
    return PlainStep(*settings, make_optimizer=custom.optimizer)


def _build_network(
    config: Config, custom: Custom, num_outputs: int, initial: TrainedModel | None
) -> nn.Module:
    if initial is not None and custom.model is not None:
        if (num_classes := len(initial.class_names)) != max(num_outputs, 2):
            raise UsageError(
                f"{initial.path} has logits for {num_classes} classes, but the data needs "
                f"{num_outputs}"
            )
        initial.model.train()
        return initial.model
    model = MLP(config.model.hidden, num_outputs)
    if initial is not None:
        sizes = initial.mlp.sizes
        if sizes != model.sizes:
            wrong, right = ("→".join(map(str, widths)) for widths in (sizes, model.sizes))
            advice = f"set model.hidden = {list(sizes[1:-1])}"
            raise UsageError(
                f"train.init = '{config.train.init}' is a network {wrong}, but this run's is "
                f"{right}: {advice if sizes[-1] == num_outputs else 'their outputs differ'}"
            )
        model.load_state_dict(initial.model.state_dict())
    return model


@contextlib.contextmanager
def as_dry_run(config: Config, splits: DataSplits) -> Iterator[tuple[Config, DataSplits]]:
    """Yield the config and splits of a dry run: one batch in a folder that is then removed.

    Errors lose their advice on runs, which a dry run does not keep.
    """

    def first_batch(split: Split) -> Split:
        return split[slice(config.train.batch_size)]

    validation = first_batch(splits.validation) if splits.validation else None
    train, test = first_batch(splits.train), first_batch(splits.test)
    with tempfile.TemporaryDirectory(prefix="mnist-ce-") as folder:
        place = {"output": folder, "name": "dry-run", "plots": False}
        sections = {
            "run": config.run.model_copy(update=place),
            "train": config.train.model_copy(update={"epochs": 1}),
        }
        try:
            yield (
                config.model_copy(update=sections),
                replace(splits, train=train, validation=validation, test=test),
            )
        except StoppedError as error:
            raise StoppedError("stopped; a dry run keeps nothing", error.signal_number) from None
        except RunError as error:
            reason = one_line(error.__context__ or error)
            raise RunError(
                f"the temporary folder {folder} cannot be written: {reason}; make room there, or "
                "set TMPDIR to another folder"
            ) from None
