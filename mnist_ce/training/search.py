"""A search for settings by Optuna, each trial of which is a run.

Optuna chooses the values of a trial by those before it. Its study is made from the runs on disk
before each trial, so that equal runs give equal trials; or a database holds the study, for
processes without a common disk. All else is the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_ce.config import Config, check_value, read_settings
from mnist_ce.runs.groups import definition, is_of_recipe
from mnist_ce.runs.records import RunState
from mnist_ce.runs.run_dir import create_run
from mnist_ce.system.errors import MnistCeError, RunError, TrainingError, UsageError
from mnist_ce.system.files import as_path
from mnist_ce.system.text import one_line, short
from mnist_ce.training import tune
from mnist_ce.training.callbacks import Callback, RunInfo, StopFlag
from mnist_ce.training.tune import Plan, PlannedRun, RunQueue, TuneResult

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30  # of a database's trials; Optuna counts a process as killed after two
NUMBERS = {int: IntDistribution, float: FloatDistribution}
with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
    RETRY = optuna.storages.RetryHeartbeatStaleTrialCallback()
SUGGEST: dict[type[BaseDistribution], Callable[..., Any]] = {
    CategoricalDistribution: Trial.suggest_categorical,
    FloatDistribution: Trial.suggest_float,
    IntDistribution: Trial.suggest_int,
}


def read_space(file: str | Path) -> dict[str, BaseDistribution]:
    """Read the space of a search: by key a list of choices, or a range with `low` and `high`.

    A range may have `log = true` or a `step`. It is one of integers where the key is an integer.
    Two numbers alone could mean either, so they are written as `{ choices = […] }`.
    """
    if not as_path(file).exists():
        raise UsageError(f"--search {file}: there is no such file")
    space: dict[str, BaseDistribution] = {}
    defaults = Config().flat()
    for key, value in read_settings(file)[1].items():
        if not is_of_recipe(key) or key.startswith("data."):
            raise UsageError(f"{file}: {key} belongs to no recipe, so it cannot be searched")
        number = NUMBERS.get(type(defaults.get(key)))
        is_range = False
        match value:
            case [low, high] if number:
                forms = f"{{ low = {low}, high = {high} }} or {{ choices = [{low}, {high}] }}"
                raise UsageError(f"{file}: {key} = [{low}, {high}] is ambiguous: write {forms}")
            case {"low": low, "high": high} if number:
                is_range, values = True, [low, high]
            case {"choices": [*values]} | [*values] if values:
                pass
            case _:
                kind = " or a range { low = …, high = … }" if number else ""
                raise UsageError(f"{file}: {key} must be a list of choices{kind}")
        for each in values:
            check_value(key, each, str(file))
        try:
            with warnings.catch_warnings(action="error"):  # a step that does not divide the range
                if number and is_range:
                    space[key] = number(**value)
                else:
                    space[key] = CategoricalDistribution([_encoded(choice) for choice in values])
        except (TypeError, ValueError, UserWarning) as error:
            raise UsageError(f"{file}: {key}: {one_line(error)}") from None
    if not space:
        raise UsageError(f"{file} names no key to search")
    return space


def search(plan: Plan, stop: StopFlag | None = None) -> TuneResult:
    """Run the trials of a search, and train and test the best: the search's form of `tune`.

    The trials are not tested. The setting of the highest validation accuracy is chosen, and its
    runs, one per seed, are trained anew and tested once.

    Errors are those of `tune`, and a TrainingError if no trial is complete.
    """
    queue = RunQueue(stop or StopFlag(), plan.jobs)
    trials = _run_trials(plan, queue)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        raise TrainingError(f"no trial of the search {plan.study} is complete")
    best = max(complete, key=lambda trial: trial["validation_accuracy"])  # the first of equals
    number, values = trials.index(best), best["settings"]
    chosen = {
        "chosen_trial": number,
        "settings": values,
        "validation_accuracy": best["validation_accuracy"],
        "num_trials": len(trials),
    }
    prefix = f"{plan.study}-chosen{number}"
    finals = [
        run.changed(f"{prefix}-seed{run.settings['train.seed']}", values, test_every=0)
        for run in plan.runs
    ]
    _, groups = queue.train_all(finals, {"study": prefix, **chosen})
    return TuneResult(plan.study, trials, groups, chosen)


def _run_trials(plan: Plan, queue: RunQueue) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        database = _open_database(plan) if plan.storage else None
        while True:
            study = database or _study_of_runs(plan, queue)
            trials = _counted(study, plan)
            states = [trial.state for trial in trials]
            if len(trials) < plan.num_trials or TrialState.WAITING in states:
                # Seeded by the trial, so that one process alone repeats a search exactly.
                study.sampler = optuna.samplers.TPESampler(seed=len(trials), constant_liar=True)
                study.optimize(functools.partial(_train_trial, plan, queue), n_trials=1)
            elif TrialState.RUNNING in states:
                queue.wait(states.count(TrialState.RUNNING))
                optuna.storages.fail_stale_trials(study)
            else:
                return [trial.user_attrs["trial"] for trial in trials]


def _train_trial(plan: Plan, queue: RunQueue, trial: Trial) -> float:
    """Train a trial as a run, and return its validation accuracy; NaN fails it, as Optuna has it.

    One that fails without a summary is not counted.
    """
    number = _number(trial.study.trials[trial.number])
    if trial.number not in [each.number for each in _counted(trial.study, plan)]:
        return math.nan  # another process has begun the last one at the same time
    for key, distribution in plan.space.items():
        SUGGEST[type(distribution)](trial, key, **vars(distribution))
    planned = _planned_run(plan, number, trial.params)
    origin = {"study": plan.study, "trial": number}
    values = ", ".join(f"{key} = {short(value)}" for key, value in trial.params.items())
    logger.info(f"trial {number + 1} of {plan.num_trials}: {values}")
    try:
        queue.data_digest(planned)  # that the data cannot be loaded is no fault of the trial
        record = queue.train(planned, origin, plan.num_trials, [_PruningCallback(trial)])
    except MnistCeError:  # it was stopped, for example, and waits with its values
        RETRY(trial.study, trial.study.trials[trial.number])
        raise
    if record is None:
        return math.nan  # another process trains it
    if not planned.run.path.exists():  # it failed before it had a directory
        output, name = planned.run.path.parent, planned.run.name
        with contextlib.suppress(UsageError):  # another process was faster
            create_run(output, name, "", lambda run, _: run.write_record(record))
    trial.set_user_attr("trial", tune.summary(record, plan.space))
    if record.status == RunState.PRUNED:
        raise optuna.TrialPruned
    return math.nan if record.status == RunState.FAILED else float(record["validation_accuracy"])


class _PruningCallback(Callback):
    """Prunes a trial: see Optuna's `MedianPruner`."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_start(self, info: RunInfo) -> None:
        self.num_epochs = info.config.train.epochs
        for row in info.run.read_metrics():  # of a resumed run
            if row["epoch"] < info.epoch:
                self.on_epoch(row)

    def on_epoch(self, metrics: Mapping[str, Any]) -> None:
        if metrics["epoch"] < self.num_epochs:
            self.trial.report(metrics["validation_accuracy"], metrics["epoch"])
            if self.trial.should_prune():
                raise tune.PrunedError


def _planned_run(plan: Plan, number: int, params: Mapping[str, Any]) -> PlannedRun:
    values = {
        key: json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        for key, value in params.items()
    }
    return plan.runs[0].changed(f"{plan.study}-{number}", values, test_every=-1)


def _encoded(value: Any) -> Any:  # noqa: ANN401
    return json.dumps(value) if isinstance(value, list) else value  # Optuna takes no list


def _counted(study: optuna.Study, plan: Plan) -> list[FrozenTrial]:
    """Return the planned trials, without those that failed untrained and were queued again."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL or "trial" in trial.user_attrs
    ]
    return sorted(trials, key=_number)[: plan.num_trials]


def _number(trial: FrozenTrial) -> int:
    """Return the number of a trial's first attempt."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def _study_of_runs(plan: Plan, queue: RunQueue) -> optuna.Study:
    """Return a study of the trials on disk, up to the first that is to be trained."""
    study = _create_study()
    for number in range(plan.num_trials):
        planned = _planned_run(plan, number, {})
        run, record = planned.run, planned.run.read_record()
        if record is None:
            break
        queue.check(planned, record, but=plan.space)
        result: dict[str, Any] = {}
        state = "running" if run.is_locked() else "waiting"
        if str(record.status) in tune.TRIAL_STATES and record["tune"] is not None:
            state = tune.TRIAL_STATES[str(record.status)]
            accuracies = {row["epoch"]: row["validation_accuracy"] for row in run.read_metrics()}
            result["intermediate_values"] = accuracies
            result["user_attrs"] = {"trial": tune.summary(record, plan.space)}
            result["value"] = record.validation_accuracy if state == "complete" else None
        flat = Config().flat() | record.flat_config
        result["params"] = {key: _encoded(flat[key]) for key in plan.space}
        result |= {"distributions": dict(plan.space), "state": TrialState[state.upper()]}
        try:
            study.add_trial(optuna.trial.create_trial(**result))
        except ValueError as error:
            raise RunError(f"run {run.path} is of another search: {one_line(error)}") from None
        if state == "waiting":
            break
    return study


def _open_database(plan: Plan, attempts: int = 30) -> optuna.Study:
    """Return the study of a plan in a database, created if it is new."""
    content = definition(plan.runs[0].record) | {k: repr(v) for k, v in plan.space.items()}
    try:
        storage = optuna.storages.RDBStorage(
            str(plan.storage),
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=RETRY,
        )
        study = _create_study(storage=storage, study_name=plan.study, load_if_exists=True)
        before = study.user_attrs.get("plan", content)
        study.set_user_attr("plan", before)
    except Exception as error:  # SQLAlchemy, its drivers and Optuna raise many kinds
        reason = one_line(error)
        if attempts > 1 and re.search("already exists|unique|locked", reason, re.IGNORECASE):
            time.sleep(1)  # another process creates the tables at the same time
            return _open_database(plan, attempts - 1)
        raise RunError(f"the study {plan.study} cannot be opened in --storage: {reason}") from None
    tune.check_equal(f"the study {plan.study} of --storage", before, content)
    return study


def _create_study(**options: Any) -> optuna.Study:  # noqa: ANN401
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    return optuna.create_study(pruner=pruner, direction="maximize", **options)
