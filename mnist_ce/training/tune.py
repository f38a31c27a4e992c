"""Training of many runs by any number of processes, with the runs on disk as their queue.

A missing run is trained, an unfinished one that no process has locked is resumed, and one that has
ended is left as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_ce.config import resolve_config
from mnist_ce.data.dataset import load_dataset
from mnist_ce.runs.groups import RunGroup, group_runs
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.system.errors import DeviceError, RunError, StoppedError, TrainingError, UsageError
from mnist_ce.training.plan import Plan, PlannedRun, check_equal, definition
from mnist_ce.training.trainer import Callback, StopFlag, train

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two looks at the runs of other processes
TRIAL_STATES = {"finished": "complete", "pruned": "pruned", "failed": "fail"}  # of runs that ended


@dataclass(frozen=True)
class TuneResult:
    """A plan that is done."""

    study: str
    trials: list[dict[str, Any]]  # the `summary` of each
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

    Raises:
        RunError: If a run of a planned name has other settings or other data.
        StoppedError: If `stop` was set; the same call continues.
    """
    records = RunQueue(stop or StopFlag()).train_all(plan.runs, {"study": plan.study})
    return TuneResult(plan.study, list(map(summary, records)), group_records(records))


def group_records(records: Sequence[RunRecord]) -> list[RunGroup]:
    return group_runs((str(record.name), record) for record in records)


def summary(record: RunRecord, searched: Collection[str] = ()) -> dict[str, Any]:
    """Return what a result says of a run that ended."""
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
    digests: dict[str, str] = field(default_factory=dict)  # of one's own data, by dataset name
    num_awaited: int = 0  # runs of other processes

    def train_all(self, runs: Sequence[PlannedRun], origin: Mapping[str, Any]) -> list[RunRecord]:
        """Return the records of runs when all have ended, here or in other processes."""
        ended: dict[int, RunRecord] = {}
        while True:
            for number, run in enumerate(runs):
                if number not in ended:
                    record = self.train(run, {**origin, "trial": number}, len(runs))
                    ended |= {number: record} if record else {}
            if len(ended) == len(runs):
                return [ended[number] for number in range(len(runs))]
            self.wait(len(runs) - len(ended))

    def train(
        self,
        planned: PlannedRun,
        origin: Mapping[str, Any],
        num_runs: int,
        callbacks: Sequence[Callback] = (),
    ) -> RunRecord | None:
        """Return the record of a run when it has ended; None: another process trains it.

        A run whose settings cannot be trained has failed, as one whose loss is not finite; where
        nothing of it is on disk, it is tried again by the next call.
        """
        run, settings = planned.run, planned.settings
        exists, before = run.path.exists(), run.read_record()
        if before is not None:
            self.check(planned, before)
            if before.status in TRIAL_STATES:
                return before
        elif exists:
            raise RunError(f"{run.path} is in the way of a run of this name: it has no record")
        if run.is_locked():
            return None
        changes: dict[str, Any] = {"tune": dict(origin)}
        try:
            if before is None:
                config = resolve_config(flags=settings, environment={})
                train(config, recipe=planned.recipe, callbacks=callbacks, stop=self.stop)
            else:
                train(resume=str(run.path.absolute()), callbacks=callbacks, stop=self.stop)
        except PrunedError:
            changes["status"] = RunState.PRUNED
        except DeviceError:
            raise
        except (UsageError, TrainingError) as error:
            if isinstance(error, UsageError) and before is None and run.path.exists():
                return None  # another process made the run first
            changes |= {"status": RunState.FAILED, "error": str(error)}
        except RunError:
            if run.is_locked():
                return None
            raise
        record = (run.read_record() or planned.untrained_record()).updated(**changes)
        if run.path.exists():
            run.write_record(record)
        _log(record, f"({origin['trial'] + 1} of {num_runs})")
        return record

    def check(self, planned: PlannedRun, record: RunRecord, but: Collection[str] = ()) -> None:
        """Raise a RunError unless a run has the data and the settings of a plan, `but` for some."""
        there = definition(record.flat_config) | {"custom": record.custom}
        here = definition(planned.settings) | {"custom": None}
        dataset = planned.settings["data.dataset"]
        if ":" in dataset and record.dataset_digest:  # files of one's own, which may have changed
            if dataset not in self.digests:
                folder = Path(planned.settings["data.dir"])
                self.digests[dataset] = load_dataset(dataset, folder).digest
            there["dataset_digest"] = record.dataset_digest
            here["dataset_digest"] = self.digests[dataset]
        here = {key: value for key, value in here.items() if key not in but}
        check_equal(f"run {planned.run.path}", there, here)

    def wait(self, num_runs: int) -> None:
        """Wait a moment for other processes; raise a StoppedError when stopped."""
        if num_runs != self.num_awaited:
            logger.info(f"waiting for {num_runs} runs of other processes")
        self.num_awaited = num_runs
        self.stop.is_checked = True
        time.sleep(POLL_SECONDS)
        self.stop.is_checked = False
        if self.stop.signal_number is not None:
            raise StoppedError("stopped while waiting", self.stop.signal_number)


def _log(record: RunRecord, place: str) -> None:
    if record.status == RunState.FAILED:
        logger.warning(f"{record.name}: {record['error']}")
    elif record.status == RunState.PRUNED:
        logger.info(f"{record.name}: pruned {place}")
    else:
        splits = ("test", "validation", "train")
        split = next(name for name in splits if record[f"{name}_accuracy"] is not None)
        logger.info(f"{record.name}: {split} accuracy {record[f'{split}_accuracy']:.2%} {place}")
