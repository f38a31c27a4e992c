"""Plans of many runs, trained by any number of processes with the runs on disk as their queue.

A plan has configs × seeds × points of a grid, or a search's trials. A missing run is trained, an
unfinished one that no process has locked is resumed, and one that has ended is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import re
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ce.config import check_value, recipe_name, resolve_config
from mnist_ce.data.dataset import load_dataset
from mnist_ce.runs.groups import RunGroup, definition, group_runs, is_of_recipe
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import FORMAT_VERSION, RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir, check_run_name
from mnist_ce.system.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    MnistCeError,
    RunError,
    StoppedError,
    TrainingError,
    UsageError,
)
from mnist_ce.system.text import sanitize
from mnist_ce.training.callbacks import Callback, ProgressCallback, StopFlag
from mnist_ce.training.trainer import train

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)

MAX_RUNS = 10_000
TRIAL_STATES = {"finished": "complete", "pruned": "pruned", "failed": "fail"}  # of runs that ended


@dataclass(frozen=True)
class PlannedRun:
    """A run to be trained."""

    recipe: str
    settings: dict[str, Any]  # all, by dotted key; of a trial they may not go together

    @property
    def run(self) -> RunDir:
        return RunDir(Path(self.settings["run.output"]) / self.settings["run.name"])

    def changed(self, name: str, values: Mapping[str, Any], test_every: int) -> PlannedRun:
        changes = {**values, "run.name": name, "train.test_every": test_every}
        return PlannedRun(self.recipe, self.settings | changes)

    @property
    def record(self) -> RunRecord:
        """The record of the run before it is trained."""
        tables: dict[str, dict[str, Any]] = {}
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            tables.setdefault(section, {})[name] = value
        names = {"name": self.run.name, "recipe": self.recipe, "seed": tables["train"]["seed"]}
        return RunRecord(format_version=FORMAT_VERSION, config=tables, **names)


@dataclass
class Plan:
    """What one or many processes train together; a UsageError if its parts do not fit."""

    runs: tuple[PlannedRun, ...]  # of a search, those of its test, without the values searched
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)  # by key; empty: no search
    num_trials: int = 0  # of the search
    study: str = ""  # with which the names of its runs begin; by default a digest of what it is
    storage: str | None = None  # a search's database; None: its trials are the runs on disk
    jobs: int = 1  # processes on this machine, for the time that is left

    def __post_init__(self) -> None:
        definitions = [definition(run.record) for run in self.runs]
        if self.space and not definitions[0]["data.validation_size"]:
            raise UsageError("a search needs validation images: --set data.validation_size=5000")
        if self.storage is not None and not (self.space and "://" in self.storage):
            raise UsageError(f"--storage {self.storage}: give a database's URL, to --search in")
        # The seeds of a search's test and the number of its trials may grow.
        content = [definitions[0], sorted(map(repr, self.space.items()))]
        text = json.dumps(content if self.space else definitions)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.study = self.study or f"{'search' if self.space else 'runs'}-{digest}"
        check_run_name(self.study)


def plan_runs(
    configs: Sequence[str | None],
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
) -> tuple[PlannedRun, ...]:
    """Return a run for each config, point of the grid and seed, named after what it is made from.

    A UsageError if a config or a value is wrong, there are too many runs, or two have one name.
    """
    for key, instead in (("run.name", "--name"), ("train.seed", "--seeds")):
        if key in settings or key in grid:
            raise UsageError(f"{key} is set by the plan: use {instead}")
    combinations = list(itertools.product(configs, itertools.product(*grid.values()), seeds))
    if len(combinations) > MAX_RUNS:
        raise UsageError(f"{len(combinations):,} runs are more than {MAX_RUNS:,}")
    for key, value in [(key, value) for key, values in grid.items() for value in values]:
        check_value(key, value, "--grid")
    runs: dict[str, PlannedRun] = {}
    for config, point, seed in combinations:
        values = dict(zip(grid, point, strict=True))
        flags = {**settings, **values, "train.seed": seed}
        shown = {
            key.rpartition(".")[2]: "_".join(re.findall(r"[\w.+-]+", str(value)))
            for key, value in sorted(flags.items())
            if value is not None and (key == "data.dataset" or is_of_recipe(key))
        }
        parts = map("=".join, shown.items())
        name = "-".join([recipe_name(config), *parts, f"seed{seed}"])
        if name in runs:
            raise UsageError(f"two of the runs would be called {name}: give each value once")
        flags["run.name"] = name
        try:
            flat = resolve_config(config, flags=flags).flat()
        except UsageError:  # this point's values do not go together: a run that will fail
            flat = resolve_config(config, flags=flags | dict.fromkeys(grid)).flat() | values
        runs[name] = PlannedRun(recipe_name(config), flat)
    return tuple(runs.values())


def check_equal(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise a RunError that names what differs between a definition on disk and the plan's."""
    differing = [
        f"{key} is {there.get(key)} there and {here.get(key)} here"
        for key in {**here, **there}
        if there.get(key) != here.get(key)
    ]
    if differing:
        advice = "Choose another --output, for a search another --name, or delete it"
        reason = sanitize("; ".join(differing))
        raise RunError(f"{what} exists with other settings: {reason}. {advice}")


def parse_seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < MAX_RUNS:
            raise UsageError(f"--seeds {text}: write 0-4, or 0,1,7; at most {MAX_RUNS:,}")
        seeds += range(first, last + 1)
    return seeds


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read `section.key=a,b,c` texts; values are read as TOML, else as strings."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, _, values = (part.strip() for part in text.partition("="))
        try:
            grid[key] = tomllib.loads(f"values = [{values}]")["values"]
        except ValueError:
            grid[key] = [*map(str.strip, values.split(","))]
        if key.count(".") != 1 or not grid[key]:
            raise UsageError(f"--grid {text}: write section.key=a,b, as optimizer.momentum=0.5,0.9")
    return grid


@dataclass(frozen=True)
class TuneResult:
    """A plan that is done."""

    study: str
    trials: list[dict[str, Any]]  # the `summary` of each
    groups: list[RunGroup]  # the tested runs by recipe; of a search the chosen setting's alone
    chosen: dict[str, Any] | None = None  # a search's chosen trial, settings, validation accuracy

    def count(self, state: str) -> int:
        return sum(trial["state"] == state for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"groups": [group.to_dict() for group in self.groups]}


def tune(plan: Plan, stop: StopFlag | None = None) -> TuneResult:
    """Train the runs of a plan that are missing, and return when all of them are done.

    Any number of processes can do this with one plan at the same time; each returns the same. A
    RunError if a run of a planned name has other settings or other data. After a StoppedError the
    same call continues.
    """
    queue = RunQueue(stop or StopFlag(), plan.jobs)
    records, groups = queue.train_all(plan.runs, {"study": plan.study})
    return TuneResult(plan.study, list(map(summary, records)), groups)


def summary(record: RunRecord, searched: Collection[str] = ()) -> dict[str, Any]:
    return {
        "run": record.name,
        "host": (record.process or {}).get("host"),
        "message": record["error"] if record.status == RunState.FAILED else None,
        "state": TRIAL_STATES[str(record.status)],
        "settings": {key: record.flat_config[key] for key in searched},
        **{key: record[key] for key in ("seed", "validation_accuracy", "test_accuracy")},
    }


class PrunedError(Exception):
    """Raised by a callback: a trial is worse than most before it at the same epoch."""


@dataclass
class RunQueue:
    """Runs on disk, trained by any number of processes."""

    stop: StopFlag
    jobs: int = 1
    digests: dict[str, str] = field(default_factory=dict)  # of data, by name
    num_awaited: int = 0  # runs of other processes

    def train_all(
        self, runs: Sequence[PlannedRun], origin: Mapping[str, Any]
    ) -> tuple[list[RunRecord], list[RunGroup]]:
        """Return the records and groups of runs when all have ended, here or elsewhere."""
        ended: dict[int, RunRecord] = {}
        while missing := [number for number in range(len(runs)) if number not in ended]:
            for number in missing:
                record = self.train(runs[number], {**origin, "trial": number}, len(runs))
                ended |= {number: record} if record else {}
            if len(ended) < len(runs):
                self.wait(len(runs) - len(ended))
        records = [ended[number] for number in range(len(runs))]
        return records, group_runs((str(record.name), record) for record in records)

    def train(
        self,
        planned: PlannedRun,
        origin: Mapping[str, Any],
        num_runs: int,
        callbacks: Sequence[Callback] = (),
    ) -> RunRecord | None:
        """Return the record of a run when it has ended; None: another process trains it.

        A run that cannot be trained has failed, as one whose loss is not finite; where nothing of
        it is on disk, it is tried again by the next call.
        """
        run, before = planned.run, planned.run.read_record()
        if before is not None:
            self.check(planned, before)
        elif run.path.exists():
            raise RunError(f"{run.path} is in the way of a run of this name: it has no record")
        changes: dict[str, Any] = {}
        if before is None or before.status not in TRIAL_STATES:
            if run.is_locked():
                return None
            number = origin["trial"] + 1
            progress = ProgressCallback(
                has_bar=self.jobs == 1,
                place=f"{'trial' if callbacks else 'run'} {number} of {num_runs}",
                num_after=(num_runs - number) / self.jobs,
            )
            run_training = functools.partial(
                train, callbacks=[progress, *callbacks], stop=self.stop, progress=False
            )
            try:
                if before is None:
                    config = resolve_config(flags=planned.settings, environment={})
                    run_training(config, recipe=planned.recipe)
                else:
                    run_training(resume=str(run.path.absolute()))
            except PrunedError:
                changes = {"status": RunState.PRUNED}
            except (DeviceError, StoppedError):
                raise
            except MnistCeError as error:
                is_taken = before is None and run.path.exists() and isinstance(error, UsageError)
                if is_taken or run.is_locked():
                    return None  # another process made the run first
                refused = () if before else (UsageError, CheckpointError, DataError)
                if not isinstance(error, (TrainingError, *refused)):
                    raise
                changes = {"status": RunState.FAILED, "error": str(error)}
        record = run.read_record() or planned.record
        if changes or record["tune"] is None:  # of a process that was killed after the training
            record = record.updated(**changes, tune=dict(origin))
            if run.path.exists():
                run.write_record(record)
            if record.status == RunState.FAILED:
                logger.warning(f"{record.name}: {record.error}")
            elif record.status == RunState.PRUNED:
                logger.info(f"{record.name}: pruned")
        return record

    def check(self, planned: PlannedRun, record: RunRecord, but: Collection[str] = ()) -> None:
        """Raise a RunError unless a run has data and settings of a plan, `but` for some keys."""
        there, here = definition(record), definition(planned.record)
        # What a name stands for may have changed, but not what MNIST is.
        if planned.settings["data.dataset"] != "mnist" and record.dataset_digest:
            here["dataset_digest"] = self.data_digest(planned)
        else:
            there.pop("dataset_digest", None)
        if (init := planned.settings["train.init"]) and record.init:
            with contextlib.suppress(CheckpointError):  # it is gone
                here["init"] = load_model(init, planned.run.path.parent).weights_sha256
                there["init"] = record.init.get("weights_sha256")
        for key in but:
            there[key] = here[key]
        check_equal(f"run {planned.run.path}", there, here)

    def data_digest(self, planned: PlannedRun) -> str:
        """Return the digest of a run's data as it is now; a DataError if it cannot be loaded."""
        keys = ("data.dataset", "data.dir", "data.mirror")
        name, folder, mirror = (planned.settings[key] for key in keys)
        if name not in self.digests:
            self.digests[name] = load_dataset(name, Path(folder), mirror=mirror).digest
        return self.digests[name]

    def wait(self, num_runs: int) -> None:
        if num_runs != self.num_awaited:
            logger.info(f"waiting for {num_runs} run{'s' * (num_runs != 1)} of other processes")
        self.num_awaited = num_runs
        self.stop.is_checked = True
        time.sleep(0.5)
        self.stop.is_checked = False
        if self.stop.signal_number is not None:
            raise StoppedError("stopped while waiting", self.stop.signal_number)
