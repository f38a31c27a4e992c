"""Groups of runs that differ in the seed alone, with mean and deviation of their results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mnist_ce.config import Config
from mnist_ce.runs.records import RunRecord

_IGNORED_KEYS = ("data.dir", "data.mirror", "train.device", "train.threads", "train.step")
# Of a run, but not of its recipe.
_OF_A_RUN = ("data.dataset", "dataset_digest", "train.seed", "train.test_every")


@dataclass(frozen=True)
class RunGroup:
    """Finished runs with equal settings and different seeds, one per seed."""

    label: str  # dataset and recipe, and settings that differ from those of groups of the same two
    names: tuple[str, ...]  # of the runs, by seed
    records: tuple[RunRecord, ...]

    def mean(self, key: str) -> float | None:
        values = [record[key] for record in self.records]
        return None if None in values else statistics.fmean(values)

    def deviation(self, key: str) -> float | None:
        """Return the standard deviation of the sample; None for one run, or as for the mean."""
        is_defined = len(self.records) > 1 and self.mean(key) is not None
        return statistics.stdev(record[key] for record in self.records) if is_defined else None

    def accuracy_text(self) -> str:
        """Return the test accuracy as `mean ± standard deviation` in percent."""
        mean, deviation = self.mean("test_accuracy"), self.deviation("test_accuracy")
        spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
        return "-" if mean is None else f"{100 * mean:.2f}{spread} %"

    def to_dict(self) -> dict[str, Any]:
        seeds = [record.seed for record in self.records]
        content = {"label": self.label, "n": len(seeds), "runs": list(self.names), "seeds": seeds}
        for key in ("test_accuracy", "validation_accuracy"):
            content |= {f"{key}_mean": self.mean(key), f"{key}_std": self.deviation(key)}
        return content


def definition(record: RunRecord) -> dict[str, Any]:
    """Return all that defines a run, by dotted key; keys newer than the run have their defaults.

    Name and digest of a module, optimizer or data from Python have the keys `custom.model` and so
    on.
    """
    settings = Config().flat() | record.flat_config
    digests = record.custom_digests or {}
    parts = {key: f"{name} {digests.get(key, '')}" for key, name in (record.custom or {}).items()}
    more = {f"custom.{key}": text.strip() for key, text in parts.items()}
    if record.dataset_digest is not None:
        more["dataset_digest"] = record.dataset_digest
    return {k: v for k, v in settings.items() if is_of_recipe(k) or k in _OF_A_RUN} | more


def recipe_settings(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in definition(record).items() if key not in _OF_A_RUN}


def is_of_recipe(key: str) -> bool:
    """Return whether runs with another value of a key, by its dotted name, differ in recipe."""
    return key not in (*_IGNORED_KEYS, *_OF_A_RUN) and not key.startswith("run.")


def group_runs(runs: Iterable[tuple[str, RunRecord]]) -> list[RunGroup]:
    """Group runs, given by name and record, that differ in their seed alone, in the order given.

    Unfinished and untested runs are left out. A seed counts once, since a repeated run has the
    same result: of several runs with one seed, the first is taken.
    """
    groups: dict[str, dict[int, tuple[str, RunRecord]]] = {}
    for name, record in runs:
        if record.is_finished and record.test_accuracy is not None and record.seed is not None:
            task = [record.dataset, record.dataset_digest, record.class_names]
            key = json.dumps([task, recipe_settings(record)], sort_keys=True)
            groups.setdefault(key, {}).setdefault(record.seed, (name, record))
    members = [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]
    names = [f"{runs[0][1].dataset} {runs[0][1].recipe}" for runs in members]
    recipes = [recipe_settings(runs[0][1]) for runs in members]
    found = []
    for name, recipe, runs in zip(names, recipes, members, strict=True):
        namesakes = [other for n, other in zip(names, recipes, strict=True) if n == name]
        differing = [k for k in recipe if any(other.get(k) != recipe[k] for other in namesakes)]
        label = " ".join([name, *(f"{key.partition('.')[2]}={recipe[key]}" for key in differing)])
        found.append(RunGroup(label, *zip(*runs, strict=True)))
    return found
