"""What a run starts from: its directory, its config and its data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.custom import custom_dataset
from mnist_ce.data.dataset import DataSplits, load_splits
from mnist_ce.data.splits import Split
from mnist_ce.network.model import MLP, check_module
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import INTERRUPTED, RunDir, find_run, is_shipped
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.errors import CheckpointError, RunError, StoppedError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.steps import OptimizerFactory

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
        if not callable(self.optimizer) and self.optimizer is not None:
            raise TypeError("optimizer must be a function of the parameters, such as a class")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise a UsageError for a setting that what is given makes useless."""
        useless = {"model": "model.", "optimizer": "optimizer.", "data": "data.dataset"}
        for name in self.names:
            for key in settings:
                if key.startswith(useless[name]):
                    raise UsageError(f"{key} has no effect beside {name}=…; leave one of them out")

    @property
    def names(self) -> dict[str, str]:
        """What is given, by argument, as `run.json` has it."""
        given = {"model": self.model, "optimizer": self.optimizer, "data": self.data}
        kinds = {
            key: value if hasattr(value, "__qualname__") else type(value)
            for key, value in given.items()
            if value is not None
        }
        return {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in kinds.items()}


def open_run(
    stack: contextlib.ExitStack, name: str, settings: Mapping[str, Any], custom: Custom
) -> tuple[RunDir, RunRecord, Config]:
    """Lock a run that is to be resumed, and read its record and config."""
    run = find_run(name, Path(settings.get("run.output", Config().run.output)), INTERRUPTED)
    if is_shipped(run):
        raise RunError(f"{name} are shipped weights, which are not continued: see --init")
    stack.enter_context(run.lock())
    record = run.read_record()
    if record is None:
        raise RunError(f"run {run.path} cannot be continued: it has no {run.record_path.name}")
    for key in ("model", "optimizer", "data"):
        kept, given = ((names or {}).get(key) for names in (record.custom, custom.names))
        if kept and not given:
            raise UsageError(
                f"run {run.path} was trained with {key}={kept}, given from Python; give it again: "
                f"train(resume={name!r}, {key}=…)"
            )
        if given and not kept:
            raise UsageError(f"run {run.path} was trained without {key}={given}; leave it out")
    config = resolve_config(run.config_path, flags=settings)
    for key in settings:
        if key not in RESUMABLE_KEYS:
            raise UsageError(
                f"{key} cannot change when a run is continued; only "
                f"{', '.join(RESUMABLE_KEYS[:5])} can; start a new run for another value"
            )
    before = resolve_config(run.config_path, environment={}).train.epochs
    fixed = _depends_on_epochs(config)
    if config.train.epochs != before and fixed:
        raise UsageError(
            f"run {run.path} cannot get other epochs: {fixed} is laid out for {before}"
        )
    return run, record, config


def _depends_on_epochs(config: Config) -> str | None:
    if config.has_fixed_length:
        return f"schedule.kind = '{config.schedule.kind}'"
    if config.augment.final_epochs:
        return f"augment.final_epochs = {config.augment.final_epochs}"
    return None


def load_data(config: Config, record: RunRecord | None, custom: Custom) -> DataSplits:
    """Load the data of a run; `record` is that of a resumed one, whose data must be the same."""
    data = config.data
    if record is not None:
        data = data.model_copy(update={"dataset": str(record.dataset)})
    dataset = None if custom.data is None else custom_dataset(custom.data, config.train.seed)
    splits = load_splits(data, config.objective, config.train.seed, dataset)
    if record is not None and record.dataset_digest != splits.digest:
        raise RunError(f"run {record.name} was trained on other data than this {splits.dataset}")
    return splits


def load_initial(config: Config, custom: Custom, *, is_resumed: bool) -> TrainedModel | None:
    """Load the weights that `train.init` names, into the module given; None: random weights."""
    name = "" if is_resumed else config.train.init
    if custom.model is not None and num_processes() > 1:
        raise UsageError("a module of your own is trained by one process: leave torchrun out")
    if not name and custom.model is None:
        return None
    try:
        return load_model(name or None, config.run.output, model=custom.model)
    except CheckpointError as error:
        raise CheckpointError(f"train.init: {error}") from None


def build_network(
    config: Config, custom: Custom, num_outputs: int, initial: TrainedModel | None
) -> nn.Module:
    """Build the network of a run, with random weights or those of `initial`.

    Raises:
        UsageError: If `initial` has another shape.
    """
    if initial is not None and custom.model is not None:
        if (found := len(initial.class_names)) != max(num_outputs, 2):
            raise UsageError(
                f"{initial.path} has logits for {found} classes, but the data needs {num_outputs}"
            )
        initial.model.train()
        return initial.model
    model = MLP(config.model.hidden, num_outputs)
    if initial is not None:
        given = initial.mlp.sizes
        if given != model.sizes:
            wrong, right = ("→".join(map(str, sizes)) for sizes in (given, model.sizes))
            advice = f"set model.hidden = {list(given[1:-1])}"
            raise UsageError(
                f"train.init = '{config.train.init}' is a network {wrong}, but this run's is "
                f"{right}: {advice if given[-1] == num_outputs else 'their outputs differ'}"
            )
        model.load_state_dict(initial.model.state_dict())
    return model


def truncate_to_one_batch(splits: DataSplits, batch_size: int) -> DataSplits:
    """Return splits of at most one batch each."""

    def first(split: Split) -> Split:
        return Split(split.images[:batch_size], split.labels[:batch_size])

    validation = first(splits.validation) if splits.validation else None
    return replace(
        splits, train=first(splits.train), validation=validation, test=first(splits.test)
    )


@contextlib.contextmanager
def dry_run_errors(folder: str) -> Iterator[None]:
    """Leave out the advice on runs, which a dry run does not keep."""
    try:
        yield
    except StoppedError as error:
        raise StoppedError("stopped; a dry run keeps nothing", error.signal_number) from None
    except RunError as error:
        reason = one_line(error.__context__ or error)
        raise RunError(
            f"the temporary folder {folder} cannot be written: {reason}; make room there, or set "
            "TMPDIR to another folder"
        ) from None


def describe_initial(config: Config, initial: TrainedModel) -> dict[str, str]:
    """Return what `run.json` says of the weights that a run began with."""
    source = config.train.init or str(initial.path)
    return {"checkpoint": source, "weights_sha256": initial.weights_sha256}
