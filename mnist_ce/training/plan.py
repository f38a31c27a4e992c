"""The runs of `mnist-ce tune`: configs × seeds × points of a grid, and a search's."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ce.config import Config, recipe_name, resolve_config
from mnist_ce.runs.groups import is_of_recipe
from mnist_ce.runs.records import FORMAT_VERSION, RunRecord
from mnist_ce.runs.run_dir import RunDir, check_run_name
from mnist_ce.system.errors import RunError, UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_RUNS = 10_000


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

    def untrained_record(self) -> RunRecord:
        """Return the record of a run that failed before it had one."""
        tables: dict[str, dict[str, Any]] = {}
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            tables.setdefault(section, {})[name] = value
        names = {"name": self.run.name, "recipe": self.recipe, "seed": tables["train"]["seed"]}
        return RunRecord(format_version=FORMAT_VERSION, config=tables, **names)


@dataclass(frozen=True)
class Plan:
    """What one or many processes train together."""

    study: str  # the name of a search, with which the names of its runs begin
    runs: tuple[PlannedRun, ...]  # of a search, those of its test, without the values searched
    space: Mapping[str, BaseDistribution]  # of each key that is searched; empty: no search
    num_trials: int  # of the search
    storage: str | None  # the URL of a search's database; None: its trials are the runs on disk


def plan_runs(
    configs: Sequence[str | None],
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
) -> tuple[PlannedRun, ...]:
    """Return a run for each config, point of the grid and seed, named after what it is made from.

    Raises:
        UsageError: If a config or a value is wrong, if there are too many runs, or if two would
            have one name.
    """
    for key, instead in (("run.name", "--name"), ("train.seed", "--seeds")):
        if key in settings or key in grid:
            raise UsageError(f"{key} is set by the plan: use {instead}")
    combinations = list(itertools.product(configs, itertools.product(*grid.values()), seeds))
    if len(combinations) > MAX_RUNS:
        raise UsageError(f"{len(combinations):,} runs are more than {MAX_RUNS:,}")
    runs: dict[str, PlannedRun] = {}
    for config, point, seed in combinations:
        flags = {**settings, **dict(zip(grid, point, strict=True)), "train.seed": seed}
        parts = [
            f"{key.rpartition('.')[2]}={_in_a_name(value)}"
            for key, value in sorted(flags.items())
            if value is not None and (key == "data.dataset" or is_of_recipe(key))
        ]
        name = "-".join([recipe_name(config), *parts, f"seed{seed}"])
        if name in runs:
            raise UsageError(
                f"two of the runs would be called {name}; give each value and file once"
            )
        resolved = resolve_config(config, flags={**flags, "run.name": name})
        runs[name] = PlannedRun(recipe_name(config), resolved.flat())
    return tuple(runs.values())


def _in_a_name(value: object) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


def make_plan(
    runs: tuple[PlannedRun, ...],
    space: Mapping[str, BaseDistribution],
    num_trials: int,
    study: str | None = None,
    storage: str | None = None,
) -> Plan:
    """Return a plan; without a name it is named by a digest of all that defines its runs.

    Raises:
        UsageError: If the name or the URL is none, or if a search has no validation split.
    """
    definitions = [definition(run.settings) for run in runs]
    if space and not definitions[0]["data.validation_size"]:
        raise UsageError(
            "a search chooses by the accuracy on a validation split, never on the test set: "
            "--set data.validation_size=5000"
        )
    if storage is not None and not (space and "://" in storage):
        raise UsageError(f"--storage {storage}: give the URL of a database, to --search in")
    if not study:
        # The seeds of a search's test and the number of its trials may grow.
        content = [definitions[0], sorted(map(repr, space.items()))] if space else definitions
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        study = f"{'search' if space else 'runs'}-{digest}"
    elif not re.fullmatch(r"\w[\w.=+-]*", study):
        raise UsageError(f"--name {study}: use letters, digits and . = + - _ alone")
    check_run_name(study)
    return Plan(study, runs, space, num_trials, storage)


def definition(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what defines a run, by dotted key; keys that are missing have their defaults."""
    flat = {**Config().flat(), **settings}
    named = ("train.seed", "data.dataset")
    return {key: value for key, value in flat.items() if is_of_recipe(key) or key in named}


def check_equal(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise a RunError that names what differs between a definition on disk and the plan's."""
    differing = [
        f"{key} is {there.get(key)} there and {value} here"
        for key, value in here.items()
        if there.get(key) != value
    ]
    if differing:
        raise RunError(
            f"{what} exists with other settings: {'; '.join(differing)}. Choose another --name or "
            "--output, or delete it"
        )


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `0-4` or `0,1,7-9`."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < MAX_RUNS:
            example = f"write for example 0-4, or 0,1,7; at most {MAX_RUNS:,}"
            raise UsageError(f"--seeds {text}: {example}")
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
