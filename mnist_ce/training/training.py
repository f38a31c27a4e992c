"""Training: the door through which the CLI, tests and notebooks start or continue a run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_ce.config import Config, resolve_config
from mnist_ce.runs.run_dir import RunDir, find_run
from mnist_ce.runs.run_folder import check_new_run, locked_run
from mnist_ce.system.distributed import broadcast_from_main, process_group
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.trainer import Trainer, TrainResult

__all__ = ["Callback", "TrainResult", "train"]


def train(
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | None = None,
    dry_run: bool = False,
    recipe: str | None = None,
    reporter: Callback | None = None,
) -> TrainResult:
    """Train the network and keep the run on disk.

    Args:
        config: A config, a TOML file, or the name of a shipped one; None: the defaults.
        settings: Values by dotted key, such as `{"train.epochs": 1}`, laid over `config`.
        resume: The name or folder of a run to continue, or `latest`.
        dry_run: Do one batch of everything in a temporary folder and leave nothing behind.
        recipe: What to call the config in the run's name and record.
        reporter: Who is told what happens.

    Raises:
        UsageError: If the config, or a setting together with the data or the device, is wrong.
        DataError: If the data cannot be had.
        RunError: If the run's folder cannot be made or written, or another process holds it.
        TrainingError: If the loss is not finite, or another process of several is lost.
        StoppedError: If the reporter asked to stop; the state was saved.
    """
    reporter = reporter or Callback()
    settings = {key: value for key, value in (settings or {}).items() if value is not None}
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group())
        if resume is not None:
            run, config = broadcast_from_main(lambda: _held(stack, resume, settings))
            return Trainer(config, reporter, "custom", resumed=run).run_to_end()
        if not isinstance(config, Config):
            recipe = recipe or (Path(config).stem if config is not None else "default")
            config = resolve_config(config, flags=settings)
        elif settings:
            raise UsageError("give settings with a config's name or file, not with a Config")
        recipe = recipe or "custom"
        if dry_run:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist-ce-"))
            place = config.run.model_copy(update={"output": folder, "name": "dry-run"})
            config = config.model_copy(update={"run": place})
        else:
            check_new_run(Path(config.run.output), config.run.name)
        return Trainer(config, reporter, recipe, first_batch_only=dry_run).run_to_end()


_MAY_CHANGE = ("train.epochs", "train.device", "train.threads", "train.step", "data.dir")
_MAY_CHANGE_TOO = ("data.mirror", "run.output", "run.log_interval", "run.save_every_seconds")


def _held(
    stack: contextlib.ExitStack, name: str, settings: Mapping[str, Any]
) -> tuple[RunDir, Config]:
    """Return a run that no other process can train now, and its config."""
    run = find_run(name, Path(settings.get("run.output", Config().run.output)))
    stack.enter_context(locked_run(run))
    if run.read_record() is None:
        raise RunError(f"run {run.path} cannot be continued: it has no {run.record_path.name}")
    return run, _resumed_config(run, settings)


def _resumed_config(run: RunDir, settings: Mapping[str, Any]) -> Config:
    """Return the run's own config with what may change when it is continued."""
    config = resolve_config(run.config_path, flags=settings)
    for key in settings:
        if key not in (*_MAY_CHANGE, *_MAY_CHANGE_TOO, "run.plots"):
            raise UsageError(
                f"{key} cannot change when a run is continued; only {', '.join(_MAY_CHANGE)} can"
            )
    before = resolve_config(run.config_path, environment={}).train.epochs
    if config.train.epochs != before:
        shape = _fixed_shape(config)
        if shape:
            raise UsageError(
                f"run {run.path} cannot get other epochs: {shape} is laid out for {before}"
            )
    return config


def _fixed_shape(config: Config) -> str | None:
    """Return what in a config depends on the number of epochs."""
    if config.has_fixed_length:
        return f"schedule.kind = '{config.schedule.kind}'"
    if config.augment.final_epochs:
        return f"augment.final_epochs = {config.augment.final_epochs}"
    return None
