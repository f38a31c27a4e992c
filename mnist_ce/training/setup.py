"""What a run starts from: directory, config, data, network, step, record, and who writes it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_ce.config import Config, resolve_config
from mnist_ce.data.dataset import DataSplits, custom_dataset, load_splits, short_name
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.evaluation.evaluate import warn_of_convention
from mnist_ce.network.model import MLP
from mnist_ce.runs.groups import definition
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import FORMAT_VERSION, RESULTS, RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir, create_run, find_run, is_shipped
from mnist_ce.runs.train_state import Snapshot, TrainState, load_snapshot
from mnist_ce.system.device import environment
from mnist_ce.system.distributed import from_main, num_processes
from mnist_ce.system.errors import RunError, StoppedError, UsageError
from mnist_ce.system.files import as_path, repository_root
from mnist_ce.system.text import one_line
from mnist_ce.training.steps import OptimizerFactory, Step
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

logger = logging.getLogger(__name__)

# The keys that may differ in a resumed run; messages name the first six.
RESUMABLE_KEYS = (
    *("train.epochs", "train.device", "train.threads", "train.step", "data.dir", "data.dataset"),
    *("data.mirror", "run.output", "run.log_interval", "run.save_every_seconds", "run.plots"),
)


@dataclass(frozen=True)
class Custom:
    """What `train` is given from Python in place of a part of the config."""

    model: nn.Module | None = None
    optimizer: OptimizerFactory | None = None
    data: object = None

    def __post_init__(self) -> None:
        if self.model is not None and num_processes() > 1:
            raise UsageError("a module of your own is trained without torchrun, by one process")
        if self.optimizer is not None and not callable(self.optimizer):
            raise TypeError("optimizer must be a function of the parameters, such as a class")

    @property
    def names(self) -> dict[str, str]:
        """The qualified name of each part, as `run.json` has it."""
        parts = {key: part for key, part in vars(self).items() if part is not None}
        kinds = {k: p if hasattr(p, "__qualname__") else type(p) for k, p in parts.items()}
        return {key: f"{kind.__module__}.{kind.__qualname__}" for key, kind in kinds.items()}

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        useless = {"model": "model.", "optimizer": "optimizer.", "data": "data.dataset"}
        for name in self.names:
            for key in settings:
                if key.startswith(useless[name]):
                    raise UsageError(f"{key} has no effect beside {name}=…; leave one of them out")

    def check_equal(self, run: RunDir, recorded: Mapping[str, str]) -> None:
        """Raise a UsageError unless a run was begun with custom parts for the same arguments."""
        if self.names.keys() != recorded.keys():
            parts = ", ".join(f"{key}={name}" for key, name in recorded.items()) or "nothing"
            raise UsageError(
                f"run {run.path} was trained with {parts} given from Python; give train the same"
            )


@contextlib.contextmanager
def reopen_run(
    name: str, settings: Mapping[str, Any], custom: Custom
) -> Iterator[tuple[RunDir, RunRecord, Config]]:
    output = as_path(settings.get("run.output", Config().run.output))
    run = find_run(name, output, RunState.RESUMABLE)
    if is_shipped(run):
        raise RunError(f"{name} are shipped weights, which are not continued: see --init")
    problem = f"run {run.path} cannot be continued"
    with run.lock():
        if (record := run.read_record()) is None:
            raise RunError(f"{problem}: it has no run.json")
        custom.check_equal(run, record.custom or {})
        config = resolve_config(run.config_path, flags=settings)
        for key in (key for key in settings if key not in RESUMABLE_KEYS):
            allowed = ", ".join(RESUMABLE_KEYS[:6])
            raise UsageError(f"{key} cannot change when a run is continued; only {allowed} can")
        epochs = record.epochs or config.train.epochs
        fixed = "schedule.kind" if config.has_fixed_length else "augment.final_epochs"
        if config.train.epochs != epochs and (value := config.flat()[fixed]):
            raise UsageError(f"{problem}: {fixed} = {value!r} is laid out for {epochs} epochs")
        if not run.resume_path.exists():
            raise RunError(f"{problem}: it has no resume.pt; train a new one")
        yield run, record, config


@contextlib.contextmanager
def new_run(config: Config, record: RunRecord, step: Step) -> Iterator[RunDir]:
    """Create and lock the directory of a new run, with config, record and first snapshot."""

    def write_files(run: RunDir, name: str) -> None:
        run.write_config(config)
        run.write_record(record.updated(name=name))
        Snapshot(step.state(), TrainState().model_dump(), definition(record)).write(run)

    created = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{short_name(str(record.dataset))}-{record.recipe}-{created}"
    with create_run(Path(config.run.output), config.run.name, stem, write_files).lock() as run:
        yield run


@dataclass(frozen=True)
class Setup:
    """What a run is made from."""

    config: Config
    recipe: str
    custom: Custom
    before: RunRecord | None = None  # the record of a run that is resumed

    def load(self) -> tuple[TrainedModel | None, DataSplits]:
        """Load the initial weights, None for random ones, and the data; before, that of the run."""
        config, custom, data, initial = self.config, self.custom, self.config.data, None
        if config.train.init and self.before is None:
            initial = load_model(config.train.init, config.run.output, model=custom.model)
            logger.info(f"starting from {initial.label}")
        elif custom.model is not None:
            initial = load_model(model=custom.model)
        if self.before and data.dataset == self.before.flat_config.get("data.dataset"):
            data = data.model_copy(update={"dataset": str(self.before.dataset)})  # for auto
        dataset = None if custom.data is None else custom_dataset(custom.data)
        splits = load_splits(data, config.objective, config.train.seed, dataset, to_train=True)
        warn_of_convention(splits)
        if self.before is not None and self.before.dataset_digest != splits.digest:
            raise RunError(
                f"run {self.before.name} was trained on other data than this {splits.dataset}"
            )
        return initial, splits

    def build_step(
        self, device: torch.device, splits: DataSplits, initial: TrainedModel | None
    ) -> Step:
        """Build network and step on the device; a UsageError if they or `initial` do not fit."""
        config, custom = self.config, self.custom
        kind = choose_step(config, custom, device.type)
        network = self._build_network(splits.num_outputs, initial).to(device)
        loader = DeviceLoader(
            splits.train.images.to(device),
            splits.train.labels.to(device),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            augment=config.augment,
            last_augmented_epoch=config.train.epochs - config.augment.final_epochs,
        )
        if kind == "fast":
            return FastStep(network, loader, splits.objective, config)
        return PlainStep(network, loader, splits.objective, config, custom.optimizer)

    def _build_network(self, num_outputs: int, initial: TrainedModel | None) -> nn.Module:
        if initial is not None and self.custom.model is not None:
            if (number := len(initial.class_names)) != max(num_outputs, 2):
                name = f"{initial.path} has logits for {number} classes"
                raise UsageError(f"{name}, but the data needs {num_outputs}")
            initial.model.train()
            return initial.model
        model = MLP(self.config.model.hidden, num_outputs)
        if initial is not None:
            if (sizes := initial.mlp.sizes) != model.sizes:
                theirs, ours = ("→".join(map(str, widths)) for widths in (sizes, model.sizes))
                init = f"train.init = '{self.config.train.init}' is a network {theirs}"
                raise UsageError(f"{init}, but this run's is {ours}: see model.hidden")
            model.load_state_dict(initial.model.state_dict())
        return model

    def new_record(self, splits: DataSplits, step: Step, initial: TrainedModel | None) -> RunRecord:
        kind = "" if self.custom.model is None else type(self.custom.model).__name__
        named = "" if kind and self.recipe in ("default", "custom") else self.recipe
        device = step.loader.device
        gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        record = RunRecord(
            format_version=FORMAT_VERSION,
            recipe="-".join(filter(None, (named, kind))),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            status=RunState.RUNNING,
            dataset=splits.dataset,
            dataset_digest=splits.digest,
            dataset_split=splits.split_note,
            class_names=list(splits.class_names),
            objective=self.config.objective.kind,
            versions=environment(),
            device=f"{device}{gpu}",
            threads=torch.get_num_threads(),
            processes=num_processes(),
            step=step.kind,
            seed=self.config.train.seed,
            command=sys.argv,
            git_commit=_git_commit(),
            epochs=self.config.train.epochs,
            num_parameters=sum(p.numel() for p in step.model.parameters()),
            config=self.config.to_dict(),
            process={"id": os.getpid(), "host": socket.gethostname()},
        )
        if self.custom.names:
            record = record.updated(custom=self.custom.names, custom_digests=_digests(step))
        if initial is not None:
            source, digest = self.config.train.init or str(initial.path), initial.weights_sha256
            record = record.updated(init={"checkpoint": source, "weights_sha256": digest})
        return record

    def restore(
        self, run: RunDir, before: RunRecord, now: RunRecord, step: Step, writer: AsyncCheckpointer
    ) -> tuple[RunRecord, TrainState]:
        """Return the record and state of a run that is resumed, and load its last snapshot.

        `before` is the record on disk, `now` that of a run that began now. The files are brought to
        the moment of the snapshot, those of a complete run left as they are.
        """
        defined = {k: v for k, v in definition(now).items() if k not in RESUMABLE_KEYS}
        expected = (step.parameters, step.buffers, defined)
        step_state, state = from_main(lambda: load_snapshot(run, *expected))
        epochs, num_batches = self.config.train.epochs, len(step.loader)
        num_steps = (state.epoch - 1) * num_batches + state.batch
        if step_state["num_steps"] != num_steps:
            raise RunError(f"{run.resume_path} does not fit {run.config_path}: one was changed")
        if num_steps > epochs * num_batches:
            raise UsageError(f"run {run.path} is past epoch {epochs} already; give more --epochs")
        try:
            step.load_state(step_state)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"its optimizer's state: {one_line(error)}"
            raise RunError(f"{run.resume_path} does not belong to this run: {reason}") from None
        if state.is_over(epochs, self.config.train.patience):
            logger.info(f"run {run.path} is complete after {len(state.rows)} epochs")
            if before.is_finished:
                return before, state
        origin = ("name", "recipe", "created", "command", "git_commit", "init")
        replaced = {*RESULTS, *now.model_fields_set} - {*origin}
        record = now.updated(**{k: v for k, v in before.to_dict().items() if k not in replaced})
        writer.write(run.write_config, self.config)
        writer.write(run.write_record, record)
        writer.write(run.truncate_steps, step.num_steps)
        if state.rows:
            writer.write(run.write_metrics, state.rows)
        return record, state


def choose_step(config: Config, custom: Custom, device_type: str) -> str:
    """Return `plain` or `fast`; for `auto` the fast step wherever it is possible.

    A UsageError if the fast step is asked for, but not possible.
    """
    obstacle = None
    if custom.model or custom.optimizer or config.optimizer.name != "sgd":
        obstacle = "is for the MLP and SGD"
    elif num_processes() > 1:
        obstacle = "does not run in several processes"
    elif device_type != "cpu":
        obstacle = f"does not run on {device_type}"
    if config.train.step == "fast" and obstacle:
        raise UsageError(f"train.step = 'fast' {obstacle}; use 'auto' or 'plain'")
    return "plain" if obstacle or config.train.step == "plain" else "fast"


@contextlib.contextmanager
def as_dry_run(setup: Setup, splits: DataSplits) -> Iterator[tuple[Setup, DataSplits]]:
    """Yield setup and splits of a dry run: one batch in a folder that is then removed."""
    first_batch = slice(setup.config.train.batch_size)
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    with tempfile.TemporaryDirectory(prefix="mnist-ce-") as folder:
        place = {"output": folder, "name": "dry-run", "plots": False}
        run = setup.config.run.model_copy(update=place)
        train = setup.config.train.model_copy(update={"epochs": 1})
        config = setup.config.model_copy(update={"run": run, "train": train})
        try:
            batches = {name: split and split[first_batch] for name, split in parts.items()}
            yield replace(setup, config=config), replace(splits, **batches)
        except StoppedError as error:
            raise StoppedError("stopped; a dry run keeps nothing", error.signal_number) from None


def _git_commit() -> str | None:
    root = repository_root()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            command = ["git", "-C", str(root), "rev-parse", "HEAD"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()
    return None


def _digests(step: Step) -> dict[str, str]:
    """Return digests of what torch prints of a module and an optimizer, without addresses."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in step.model.state_dict().items()]
    texts = {"model": f"{step.model} {shapes}", "optimizer": str(getattr(step, "optimizer", ""))}
    texts = {key: re.sub(r"0x[0-9a-f]+", "", text) for key, text in texts.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:8] for key, text in texts.items()}


class AsyncCheckpointer(ThreadPoolExecutor):
    """Writes a run's files, rows and snapshots in a background thread.

    Every method raises a RunError for a write that has failed since the last call, once for each.
    Without a run, in a process that is not the main one, nothing is written.
    """

    def __init__(self, run: RunDir | None) -> None:
        super().__init__(1, thread_name_prefix="checkpointer")
        self.run = run
        self._writes: deque[Future[None]] = deque()  # whose errors are not raised yet
        self._snapshot: Future[None] | None = None

    def is_busy(self) -> bool:
        self._raise_errors(wait=False)
        return self._snapshot is not None and not self._snapshot.done()

    def save(self, snapshot: Snapshot) -> None:
        self._raise_errors(wait=True)
        if self.run is not None:
            self._snapshot = self.submit(snapshot.write, self.run)
            self._writes.append(self._snapshot)

    def write(self, write: Callable[[Any], None], content: object, *, wait: bool = True) -> None:
        """Call a method of the run; without `wait` after what is being written."""
        self._raise_errors(wait=wait)
        if self.run is not None:
            self._writes.append(self.submit(write, content))
        self._raise_errors(wait=wait)

    def _raise_errors(self, *, wait: bool) -> None:
        while self._writes and (wait or self._writes[0].done()):
            error = self._writes.popleft().exception()
            if isinstance(error, OSError) and self.run is not None:
                reason = f"run folder {self.run.path} cannot be written: {one_line(error)}"
                advice = "what was saved before is intact: make room, then continue with --resume"
                raise RunError(f"{reason}; {advice}") from None
            if error is not None:
                raise error
