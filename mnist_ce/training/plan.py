"""The runs of `mnist-ce tune`: configs × seeds × points of a grid, or a space to be searched."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ce.config import Config, check_value, read_settings, recipe_name, resolve_config
from mnist_ce.runs.groups import is_of_recipe
from mnist_ce.system.errors import UsageError
from mnist_ce.system.text import one_line

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_RUNS = 10_000
FOLDER = ".tune"  # in the folder of the runs: the default storage, and locks


@dataclass(frozen=True)
class PlannedRun:
    """A run to be trained under the name `config.run.name`."""

    recipe: str
    config: Config


@dataclass(frozen=True)
class Plan:
    """What one or many processes train together."""

    study: str  # the name of the Optuna study; processes with equal plans share it
    runs: tuple[PlannedRun, ...]  # of a search, those of its test, without the values searched
    space: Mapping[str, BaseDistribution]  # of each key that is searched; empty: no search
    num_trials: int  # of the search, else the number of runs
    storage: str  # a journal file, or the URL of a database


def plan_runs(
    configs: Sequence[str | None],
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
) -> tuple[PlannedRun, ...]:
    """Return a run for each config, point of the grid and seed, named after what it is made from.

    Raises:
        UsageError: If a config or a value is wrong, or if there are too many runs.
    """
    for key, instead in (("run.name", "--name"), ("train.seed", "--seeds")):
        if key in settings or key in grid:
            raise UsageError(f"{key} is set by the plan: use {instead}")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    combinations = list(itertools.product(configs, points, seeds))
    if len(combinations) > MAX_RUNS:
        raise UsageError(f"{len(combinations):,} runs are more than {MAX_RUNS:,}")
    runs = []
    for config, point, seed in combinations:
        flags = {**settings, **point, "train.seed": seed}
        parts = [
            f"{key.rpartition('.')[2]}={_in_a_name(value)}"
            for key, value in sorted(flags.items())
            if value is not None and (key == "data.dataset" or is_of_recipe(key))
        ]
        name = "-".join([recipe_name(config), *parts, f"seed{seed}"])
        resolved = resolve_config(config, flags={**flags, "run.name": name})
        runs.append(PlannedRun(recipe_name(config), resolved))
    return tuple(runs)


def _in_a_name(value: object) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


def make_plan(
    runs: tuple[PlannedRun, ...],
    space: Mapping[str, BaseDistribution],
    num_trials: int,
    study: str | None = None,
    storage: str | None = None,
) -> Plan:
    """Return a plan; without a name it is named by a digest of all that it is made from.

    Raises:
        UsageError: If a search has no validation split, or if two runs would have one name.
    """
    configs = [run.config for run in runs]
    if space and not configs[0].data.validation_size:
        raise UsageError(
            "a search chooses by the accuracy on a validation split, never on the test set: "
            "--set data.validation_size=5000"
        )
    names = [config.run.name for config in configs]
    if len(set(names)) < len(names):
        name = max(names, key=names.count)
        raise UsageError(f"two of the runs would be called {name}; give each value and file once")
    items = (item for config in configs for item in config.flat().items())
    content = [item for item in items if is_of_recipe(item[0]) or item[0] == "run.name"]
    described = json.dumps([content, {key: repr(space[key]) for key in space}])
    digest = hashlib.sha256(described.encode()).hexdigest()[:8]
    if study and not re.fullmatch(r"\w[\w.=+-]*", study):
        raise UsageError(f"--name {study}: use letters, digits and . = + - _ alone")
    study = study or f"{'search' if space else 'runs'}-{digest}"
    default = Path(configs[0].run.output) / FOLDER / f"{study}.journal"
    return Plan(study, runs, space, num_trials if space else len(runs), storage or str(default))


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `0-4` or `0,1,7-9`."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= last - first < MAX_RUNS:
            raise UsageError(
                f"--seeds {text}: write for example 0-4, or 0,1,7; at most {MAX_RUNS:,}"
            )
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


def read_space(file: str | Path) -> dict[str, BaseDistribution]:
    """Read the space of a search: by key a list of choices, or a range with `low` and `high`.

    A range may have `log = true` or a `step`. It is one of integers where the key is an integer.

    Raises:
        UsageError: If the file is not such a space, or a value is not valid for its key.
    """
    if not Path(file).is_file():
        raise UsageError(f"--search {file}: there is no such file")
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    defaults = Config().flat()
    for key, value in read_settings(file)[1].items():
        if not is_of_recipe(key) or key.startswith("data."):
            raise UsageError(f"{file}: {key} belongs to no recipe, so it cannot be searched")
        limits = value if isinstance(value, dict) else {}
        values = [limits[name] for name in ("low", "high") if name in limits] if limits else value
        for each in values if isinstance(values, list) else [values]:
            check_value(key, each, str(file))
        is_number = type(defaults[key]) in (int, float)
        is_range = len(limits) > 1 and is_number
        if not values or not isinstance(values, list) or bool(limits) != is_range:
            kind = " or a range { low = …, high = … }" if is_number else ""
            raise UsageError(f"{file}: {key} must be a list of choices{kind}")
        number = IntDistribution if type(defaults[key]) is int else FloatDistribution
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a step that does not divide the range
                choices = [json.dumps(one) if isinstance(one, list) else one for one in values]
                space[key] = number(**limits) if limits else CategoricalDistribution(choices)
        except (TypeError, ValueError, UserWarning) as error:
            raise UsageError(f"{file}: {key}: {one_line(error)}") from None
    if not space:
        raise UsageError(f"{file} names no key to search")
    return space


def searched_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a trial as settings; lists are JSON in Optuna."""
    return {
        key: json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        for key, value in params.items()
    }
