"""A search for settings by Optuna, each trial of which is a run.

Optuna chooses the values of a trial by those before it. The study is made from the runs on disk, so
that equal runs give equal trials; a database holds it for processes without a common disk.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning, TrialPruned
from optuna.samplers import TPESampler
from optuna.storages import (
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mnist_ce.config import Config, check_value, read_settings
from mnist_ce.runs.groups import is_of_recipe
from mnist_ce.runs.records import RunState
from mnist_ce.runs.run_dir import create_run
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import MnistCeError, RunError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.callbacks import Callback, RunInfo
from mnist_ce.training.plan import Plan, PlannedRun, check_equal, definition
from mnist_ce.training.run_queue import TRIAL_STATES, PrunedError, RunQueue, summary

HEARTBEAT_SECONDS = 30  # of a database's trials; Optuna counts a process as killed after two


def read_space(file: str | Path) -> dict[str, BaseDistribution]:
    """Read the space of a search: by key a list of choices, or a range with `low` and `high`.

    A range may have `log = true` or a `step`. It is one of integers where the key is an integer.

    Raises:
        UsageError: If the file is not such a space, or a value is not valid for its key.
    """
    if not Path(file).is_file():
        raise UsageError(f"--search {file}: there is no such file")
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
                choices = [_encoded(choice) for choice in values]
                space[key] = number(**limits) if limits else CategoricalDistribution(choices)
        except (TypeError, ValueError, UserWarning) as error:
            raise UsageError(f"{file}: {key}: {one_line(error)}") from None
    if not space:
        raise UsageError(f"{file} names no key to search")
    return space


def run_trials(plan: Plan, queue: RunQueue) -> list[dict[str, Any]]:
    """Return the summaries of a plan's trials when all have ended, here or in other processes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        database = _open_database(plan) if plan.storage else None
        while True:
            study = _study_of_runs(plan, queue) if database is None else database
            for _ in range(plan.num_trials - len(_counted(study, plan)) if database else 0):
                study.add_trial(create_trial(state=TrialState.WAITING))
            trials = _counted(study, plan)
            num_waiting, num_running = (
                sum(trial.state == state for trial in trials)
                for state in (TrialState.WAITING, TrialState.RUNNING)
            )
            if num_waiting:
                # Seeded by the trial, so that one process alone repeats a search exactly.
                study.sampler = TPESampler(seed=len(trials) - num_waiting, constant_liar=True)
                objective = _Objective(plan, queue)
                study.optimize(objective, n_trials=1, catch=(_NotTrainedError,))
            elif num_running:
                queue.wait(num_running)
                fail_stale_trials(study)
            else:
                return [trial.user_attrs["trial"] for trial in trials]


class _NotTrainedError(Exception):
    """A trial has failed, or another process trains it."""


@dataclass
class _Objective:
    """Trains a trial as a run, and returns its validation accuracy."""

    plan: Plan
    queue: RunQueue

    def __call__(self, trial: Trial) -> float:
        number = _number(trial)
        trial.set_user_attr("number", number)
        if trial.number not in [each.number for each in _counted(trial.study, self.plan)]:
            raise _NotTrainedError  # another process has begun the last one at the same time
        for key, distribution in self.plan.space.items():
            _suggest(trial, key, distribution)
        run = _planned_run(self.plan, number, trial.params)
        origin, num_trials = {"study": self.plan.study, "trial": number}, self.plan.num_trials
        try:
            record = self.queue.train(run, origin, num_trials, [_PruningCallback(trial)])
        except MnistCeError:
            RetryHeartbeatStaleTrialCallback()(trial.study, trial.study.trials[trial.number])
            raise
        if record is None:
            raise _NotTrainedError
        if record.config is None:  # it failed before it had a directory
            record = record.updated(config=_tables(run.settings))
            with contextlib.suppress(UsageError):  # another process was faster
                create_run(
                    run.run.path.parent, run.run.name, "", lambda d, _: d.write_record(record)
                )
        trial.set_user_attr("trial", summary(record, self.plan.space))
        if record.status == RunState.PRUNED:
            raise TrialPruned
        if record.status == RunState.FAILED:
            raise _NotTrainedError
        return float(record["validation_accuracy"])


class _PruningCallback(Callback):
    """Prunes a trial: see Optuna's `MedianPruner`."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_start(self, info: RunInfo) -> None:
        self.num_epochs = info.num_epochs
        for row in info.run.read_metrics():  # of a resumed run
            if row["epoch"] < info.epoch:
                self._report(row["epoch"], row["validation_accuracy"])

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self._report(metrics["epoch"], metrics["validation_accuracy"])

    def _report(self, epoch: int, validation_accuracy: float) -> None:
        if epoch < self.num_epochs:
            self.trial.report(validation_accuracy, epoch)
            if self.trial.should_prune():
                raise PrunedError


def _planned_run(plan: Plan, number: int, params: Mapping[str, Any]) -> PlannedRun:
    values = {
        key: json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        for key, value in params.items()
    }
    return plan.runs[0].changed(f"{plan.study}-{number}", values, test_every=-1)


def _tables(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts = [(*key.split("."), value) for key, value in settings.items()]
    return {section: {k: v for s, k, v in parts if s == section} for section, _, _ in parts}


def _encoded(value: Any) -> Any:  # noqa: ANN401
    return json.dumps(value) if isinstance(value, list) else value  # Optuna takes no list


def _study_of_runs(plan: Plan, queue: RunQueue) -> Study:
    """Return a study of the trials on disk, up to the first that is to be trained."""
    study = _create_study()
    for number in range(plan.num_trials):
        planned = _planned_run(plan, number, {})
        run, record = planned.run, planned.run.read_record()
        if record is None:
            study.add_trial(create_trial(state=TrialState.WAITING))
            break
        queue.check(run, record, planned.settings, but=plan.space)
        state = TRIAL_STATES.get(str(record.status), "running" if run.is_locked() else "waiting")
        is_over = state not in ("running", "waiting")
        rows = [row for row in run.read_metrics() if row["epoch"] != record.epochs]
        accuracies = {row["epoch"]: row["validation_accuracy"] for row in rows}
        flat = Config().flat() | record.flat_config
        try:
            study.add_trial(
                create_trial(
                    state=TrialState[state.upper()],
                    value=record.validation_accuracy if state == "complete" else None,
                    params={key: _encoded(flat[key]) for key in plan.space},
                    distributions=dict(plan.space),
                    user_attrs={"trial": summary(record, plan.space)} if is_over else {},
                    intermediate_values=accuracies if is_over else {},
                )
            )
        except ValueError as error:
            raise RunError(f"run {run.path} is of another search: {one_line(error)}") from None
        if state == "waiting":
            break
    return study


def _open_database(plan: Plan, attempts: int = 2) -> Study:
    """Return the study of a plan in a database, created if it is new."""
    content = definition(plan.runs[0].settings) | {k: repr(v) for k, v in plan.space.items()}
    try:
        storage = RDBStorage(
            str(plan.storage),
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        study = _create_study(storage=storage, study_name=plan.study, load_if_exists=True)
        before = study.user_attrs.get("plan", content)
        study.set_user_attr("plan", before)
    except Exception as error:  # SQLAlchemy, its drivers and Optuna raise many kinds
        if attempts > 1:  # two processes may have created the tables at the same time
            time.sleep(1)
            return _open_database(plan, attempts - 1)
        reason = one_line(error)
        raise RunError(f"the study {plan.study} cannot be opened in --storage: {reason}") from None
    check_equal(f"the study {plan.study} of --storage", before, content)
    return study


def _create_study(**options: Any) -> Study:  # noqa: ANN401
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    return optuna.create_study(pruner=pruner, direction="maximize", **options)


def _counted(study: Study, plan: Plan) -> list[FrozenTrial]:
    """Return the planned trials, without those that failed untrained and were queued again."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL or "trial" in trial.user_attrs
    ]
    return sorted(trials, key=_number)[: plan.num_trials]


def _number(trial: Trial | FrozenTrial) -> int:
    """Return the number of a trial's first attempt."""
    return int(trial.user_attrs.get("number", trial.number))


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
        return
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    is_int = isinstance(distribution, IntDistribution)
    suggest: Any = trial.suggest_int if is_int else trial.suggest_float
    suggest(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
