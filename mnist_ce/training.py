"""Training: the door through which the CLI, tests and notebooks start or continue a run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_ce.config import Config, resolve_config
from mnist_ce.errors import UsageError
from mnist_ce.progress import Reporter
from mnist_ce.records import Run, find_run
from mnist_ce.trainer import Trainer, TrainResult

__all__ = ["Reporter", "TrainResult", "train"]


def train(
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | None = None,
    dry_run: bool = False,
    recipe: str | None = None,
    reporter: Reporter | None = None,
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
        RunError: If the run's folder cannot be made or written.
        TrainingError: If the loss is not finite.
        StoppedError: If the reporter asked to stop; the state was saved.
    """
    reporter = reporter or Reporter()
    if resume is not None:
        output = (settings or {}).get("run.output") or Config().run.output
        run = find_run(resume, Path(output))
        config = _resumed_config(run, settings or {})
    else:
        run = None
        if not isinstance(config, Config):
            recipe = recipe or (Path(config).stem if config is not None else "default")
            config = resolve_config(config, flags=settings)
        elif settings:
            raise UsageError("give settings with a config's name or file, not with a Config")
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="mnist-ce-") as folder:
            trainer = Trainer(config, reporter, recipe or "custom", first_batch_only=True)
            return trainer.start(Path(folder), "dry-run").run_to_end()
    trainer = Trainer(config, reporter, recipe or "custom")
    if run is not None:
        return trainer.resume(run).run_to_end()
    return trainer.start(Path(config.run.output), config.run.name).run_to_end()


_MAY_CHANGE = ("train.epochs", "train.device", "train.threads", "train.step", "data.dir")


def _resumed_config(run: Run, settings: Mapping[str, Any]) -> Config:
    """Return the run's own config with what may change when it is continued."""
    config = resolve_config(run.config_path, flags=settings)
    if config.has_fixed_length and "train.epochs" in settings:
        before = resolve_config(run.config_path).train.epochs
        if config.train.epochs != before:
            raise UsageError(
                f"run {run.path} cannot get other epochs: its schedule "
                f"'{config.schedule.kind}' is laid out for {before}"
            )
    changed = [
        key
        for key, value in settings.items()
        if value is not None and key not in _MAY_CHANGE and not key.startswith("run.")
    ]
    if changed:
        raise UsageError(
            f"{changed[0]} cannot change when a run is continued; only {', '.join(_MAY_CHANGE)} can"
        )
    return config
