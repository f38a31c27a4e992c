"""Training of many runs: the same recipes by several seeds, a grid, or a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ce.runs.groups import RunGroup, group_runs
from mnist_ce.runs.records import RunRecord
from mnist_ce.system.errors import TrainingError
from mnist_ce.training.callbacks import StopFlag
from mnist_ce.training.plan import Plan
from mnist_ce.training.run_queue import RunQueue, summary


@dataclass(frozen=True)
class TuneResult:
    """A plan that is done."""

    study: str
    trials: list[dict[str, Any]]  # run, host, state, settings searched and accuracies of each
    groups: list[RunGroup]  # the tested runs by recipe; of a search the chosen setting's alone
    chosen: dict[str, Any] | None = None  # a search's chosen trial, settings, validation accuracy

    def count(self, state: str) -> int:
        """Return how many trials are `complete`, `pruned` or `fail`."""
        return sum(trial["state"] == state for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: fractions, not percent."""
        groups = [group.to_dict() for group in self.groups]
        return {"study": self.study, "trials": self.trials, "groups": groups, "chosen": self.chosen}


def tune(plan: Plan, stop: StopFlag | None = None) -> TuneResult:
    """Train the runs of a plan that are missing, and return when all of them are done.

    Any number of processes can do this with one plan at the same time; each returns the same.

    Of a search, the trials are not tested. The setting of the highest validation accuracy is
    chosen, and its runs, one per seed, are trained anew and tested once.

    Raises:
        RunError: If a run of a planned name has other settings or other data, or if the database
            cannot be opened.
        TrainingError: If no trial of a search is complete.
        StoppedError: If `stop` was set; the same call continues.
    """
    queue = RunQueue(stop or StopFlag())
    if not plan.space:
        records = queue.train_all(plan.runs, {"study": plan.study})
        return TuneResult(plan.study, list(map(summary, records)), _groups(records))

    from mnist_ce.training.search import run_trials  # imports Optuna

    trials = run_trials(plan, queue)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        raise TrainingError(f"no trial of the search {plan.study} is complete")
    best = max(complete, key=lambda trial: trial["validation_accuracy"])  # the first of equals
    number, values = trials.index(best), best["settings"]
    prefix = f"{plan.study}-chosen"
    runs = Path(plan.runs[0].settings["run.output"]).glob(f"{prefix}*-seed*")
    tested = {int(run.name.removeprefix(prefix).partition("-")[0]) for run in runs} - {number}
    chosen = {
        "chosen_trial": number,
        "settings": values,
        "validation_accuracy": best["validation_accuracy"],
        "num_trials": len(trials),
        "tested_trials": [*sorted(tested), number],  # several where a search was extended
    }
    finals = [
        run.changed(f"{prefix}{number}-seed{run.settings['train.seed']}", values, test_every=0)
        for run in plan.runs
    ]
    records = queue.train_all(finals, {"study": f"{prefix}{number}", **chosen})
    return TuneResult(plan.study, trials, _groups(records), chosen)


def _groups(records: Sequence[RunRecord]) -> list[RunGroup]:
    return group_runs((str(record.name), record) for record in records)
