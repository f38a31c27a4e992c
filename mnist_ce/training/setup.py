"""What a run starts from: its directory, its config and its data."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.dataset import DataSplits, load_splits
from mnist_ce.data.splits import Split
from mnist_ce.data.upstrokes import add_upstrokes
from mnist_ce.network.model import MLP
from mnist_ce.reader.folder import read_folder
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, find_run
from mnist_ce.system.errors import CheckpointError, RunError, UsageError

# The keys that may differ in a resumed run; messages name the first five.
RESUMABLE_KEYS = (
    *("train.epochs", "train.device", "train.threads", "train.step", "data.dir"),
    *("data.mirror", "run.output", "run.log_interval", "run.save_every_seconds", "run.plots"),
)


def open_run(
    stack: contextlib.ExitStack, name: str, settings: Mapping[str, Any]
) -> tuple[RunDir, RunRecord, Config]:
    """Lock a run that is to be resumed, and read its record and config."""
    run = find_run(name, Path(settings.get("run.output", Config().run.output)))
    stack.enter_context(run.lock())
    record = run.read_record()
    if record is None:
        raise RunError(f"run {run.path} cannot be continued: it has no {run.record_path.name}")
    config = resolve_config(run.config_path, flags=settings)
    for key in settings:
        if key not in RESUMABLE_KEYS:
            raise UsageError(
                f"{key} cannot change when a run is continued; only "
                f"{', '.join(RESUMABLE_KEYS[:5])} can"
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


def load_data(config: Config, record: RunRecord | None) -> DataSplits:
    """Load the data of a run.

    Args:
        config: The resolved config.
        record: The record of a resumed run, whose dataset is loaded again; None: a new run.
    """
    data = config.data
    if record is not None:
        data = data.model_copy(update={"dataset": str(record.dataset)})
    splits = load_splits(data, config.objective, config.train.seed, read_folder)
    if record is not None and record.dataset_digest != splits.digest:
        raise RunError(f"run {record.name} was trained on other data than this {splits.dataset}")
    if share := config.augment.upstroke_ones:
        if "1" not in splits.class_names or splits.num_outputs == 1:
            raise UsageError(f"augment.upstroke_ones = {share}, but no class is called 1")
        label = splits.class_names.index("1")
        train = add_upstrokes(splits.train, label, share, config.train.seed)
        splits = replace(splits, train=train)
    return splits


def load_initial(config: Config) -> TrainedModel:
    """Load the weights that `train.init` names; for the errors see `load_model`."""
    try:
        return load_model(config.train.init, config.run.output)
    except CheckpointError as error:
        raise CheckpointError(f"train.init: {error}") from None


def build_network(config: Config, num_outputs: int, initial: TrainedModel | None) -> MLP:
    """Build the network of a new run, with random weights or those of `initial`.

    Raises:
        UsageError: If `initial` has another shape.
    """
    model = MLP(config.model.hidden, num_outputs)
    if initial is not None:
        given, hidden = initial.model.sizes, list(initial.model.sizes[1:-1])
        if given != model.sizes:
            wrong, right = ("→".join(map(str, sizes)) for sizes in (given, model.sizes))
            advice = f"set model.hidden = {hidden}" if given[-1] == num_outputs else ""
            raise UsageError(
                f"train.init = '{config.train.init}' is a network {wrong}, but this run's is "
                f"{right}: {advice or 'their outputs differ'}"
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
