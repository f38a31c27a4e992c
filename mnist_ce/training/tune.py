"""Training of many runs by any number of processes, which share them through an Optuna study.

Each trial of a study is a run. A process asks the study for the next trial, or takes over one whose
process was killed: its run is then resumed, and ends with the same weights.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mnist_ce.config import Config, resolve_config
from mnist_ce.runs.groups import RunGroup, group_runs, recipe_settings
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import RunError, TrainingError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.callbacks import BatchInfo, Callback, RunInfo, StopFlag
from mnist_ce.training.plan import FOLDER, Plan, PlannedRun, searched_settings
from mnist_ce.training.trainer import train

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0
GRACE_SECONDS = 180.0  # without a heartbeat, before a process on another machine counts as killed
POLL_SECONDS = 0.5


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
        UsageError: If the storage cannot be opened, or a run of a planned name has other settings.
        TrainingError: If no trial of a search is complete.
        StoppedError: If `stop` was set; the same call continues.
    """
    stop = stop or StopFlag()
    if not plan.space:
        study = _Study(plan, plan.study, lambda number, _: plan.runs[number], len(plan.runs), stop)
        trials = study.train_all()
        return TuneResult(plan.study, [_summary(trial) for trial in trials], _groups(trials))

    def searched(number: int, params: Mapping[str, Any]) -> PlannedRun:
        changes = {"run.name": f"{plan.study}-{number}", "train.test_every": -1}
        return _changed(plan.runs[0], searched_settings(params) | changes)

    search = _Study(plan, plan.study, searched, plan.num_trials, stop)
    trials = search.train_all()
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise TrainingError(f"no trial of the search {plan.study} is complete")
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))
    tested = [*dict.fromkeys([*search.study.user_attrs.get("tested", []), best.number])]
    search.study.set_user_attr("tested", tested)
    settings = searched_settings(best.params)
    chosen = {
        "chosen_trial": best.number,
        "settings": settings,
        "validation_accuracy": best.value,
        "num_trials": len(trials),
        "tested_trials": tested,  # several where a search was extended after its test
    }
    name = f"{plan.study}-chosen{best.number}"

    def final(number: int, params: Mapping[str, Any]) -> PlannedRun:
        run = plan.runs[number]
        changes = {"run.name": f"{name}-seed{run.config.train.seed}", "train.test_every": 0}
        return _changed(run, settings | changes)

    finals = _Study(plan, name, final, len(plan.runs), stop, origin=chosen).train_all()
    return TuneResult(plan.study, [_summary(t) for t in trials], _groups(finals), chosen)


Planned = Callable[[int, Mapping[str, Any]], PlannedRun]


class _Study:
    """An Optuna study each of whose trials is trained as a run.

    `planned` returns the run of a trial, given its number and the values searched; `origin` is what
    the record of each run says about its origin, beside study and trial.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        planned: Planned,
        num_trials: int,
        stop: StopFlag,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.planned, self.num_trials, self.stop = planned, num_trials, stop
        self.space, self.origin = ({}, origin) if origin else (dict(plan.space), {})
        self.output = Path(plan.runs[0].config.run.output)
        self.host = socket.gethostname()
        self.study = open_study(name, plan.storage)

    def train_all(self) -> list[FrozenTrial]:
        """Return the trials when all are done, here or by other processes."""
        is_waiting = False
        while True:
            trials = self.study.get_trials(deepcopy=False)
            running = [trial for trial in trials if not trial.state.is_finished()]
            if any(self._take_over(trial) for trial in running):
                continue
            if len(trials) < self.num_trials:
                self._train(self._next_trial(len(trials)))
                continue
            if not running:
                return trials[: self.num_trials]
            if not is_waiting:
                logger.info(f"waiting for {len(running)} runs of other processes")
            is_waiting = True
            time.sleep(POLL_SECONDS)

    def _next_trial(self, count: int) -> Trial:
        from optuna.samplers import TPESampler

        # Seeded by the count, so that one process alone repeats a search exactly.
        self.study.sampler = TPESampler(seed=count, constant_liar=True)
        trial = self.study.ask(self.space)
        trial.set_user_attr("process", self._process())
        return trial

    def _process(self) -> dict[str, Any]:
        return {"host": self.host, "seen_at": time.time()}

    def _take_over(self, trial: FrozenTrial) -> bool:
        """Train a trial if its process was killed, and return whether it was."""
        from optuna.trial import Trial

        # On this machine the lock shows it. Another machine may have another disk, so its processes
        # count as killed when they have been silent for long.
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        process = trial.user_attrs.get("process", {"host": None, "seen_at": started})
        is_silent = time.time() - process["seen_at"] > GRACE_SECONDS
        if process["host"] != self.host and not is_silent:
            return False
        return self._train(Trial(self.study, trial._trial_id))

    def _train(self, trial: Trial) -> bool:
        """Train a trial that no other process is training; return whether it is done."""
        if trial.number >= self.num_trials:  # two processes took the last one at the same time
            self._finish(trial, "FAIL", None)
            return True
        try:
            run = self.planned(trial.number, trial.params)
        except UsageError as error:  # values that do not go together
            self._finish(trial, "FAIL", str(error))
            return True
        folder = self.output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / f"{run.config.run.name}.lock", blocking=False):
                before = self.study.get_trials(deepcopy=False)[trial.number]
                if not before.state.is_finished():
                    callback = _TrialCallback(trial, before, prunes=bool(self.space))
                    self._train_locked(trial, run, callback)
        except Timeout:
            return False
        return True

    def _train_locked(self, trial: Trial, planned: PlannedRun, callback: Callback) -> None:
        from optuna.exceptions import TrialPruned

        run = RunDir(self.output / planned.config.run.name)
        trial.set_user_attr("process", self._process() | {"run": run.name})
        record = run.read_record()
        if record is not None and not _has_settings(record, planned.config):
            raise RunError(f"run {run.path} exists with other settings; choose another --output")
        try:
            if record is None:
                config, callbacks = planned.config, [callback]
                train(config, recipe=planned.recipe, callbacks=callbacks, stop=self.stop)
            elif not record.is_finished:
                train(resume=str(run.path.absolute()), callbacks=[callback], stop=self.stop)
        except TrainingError as error:
            self._finish(trial, "FAIL", str(error))
            return
        except TrialPruned:
            run.write_record((run.read_record() or RunRecord()).updated(status=RunState.PRUNED))
            self._finish(trial, "PRUNED", "pruned")
            return
        record = run.read_record() or RunRecord()
        if "tune" not in record.to_dict():
            origin = {"study": self.study.study_name, "trial": trial.number, **self.origin}
            record = record.updated(tune=origin)
            run.write_record(record)
        trial.set_user_attr("record", record.to_dict())
        splits = ("validation",) if self.space else ("test", "validation", "train")
        split = next(name for name in splits if record[f"{name}_accuracy"] is not None)
        value = record[f"{split}_accuracy"]
        detail = f"{split} accuracy {value:.2%} ({trial.number + 1} of {self.num_trials})"
        self._finish(trial, "COMPLETE", detail, value)

    def _finish(
        self, trial: Trial, state: str, message: str | None, value: float | None = None
    ) -> None:
        from optuna.trial import TrialState

        if message is not None:
            name = trial.user_attrs["process"].get("run", f"trial {trial.number}")
            logger.log(logging.WARNING if state == "FAIL" else logging.INFO, f"{name}: {message}")
            trial.set_user_attr("message", message)
        # Another machine may have finished it too, after a long silence of this one.
        self.study.tell(trial.number, value, TrialState[state], skip_if_finished=True)


class _TrialCallback(Callback):
    """Shows that a trial is being trained, and prunes it: see Optuna's `MedianPruner`."""

    def __init__(self, trial: Trial, before: FrozenTrial, *, prunes: bool) -> None:
        self.trial, self.prunes = trial, prunes
        self.reported = set(before.intermediate_values)  # of a run that is resumed

    def on_start(self, info: RunInfo) -> None:
        self.num_epochs = info.num_epochs
        self.next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS

    def on_batch(self, info: BatchInfo) -> None:
        if time.monotonic() >= self.next_heartbeat:
            process = self.trial.user_attrs["process"] | {"seen_at": time.time()}
            self.trial.set_user_attr("process", process)
            self.next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS

    def on_epoch(self, metrics: EpochMetrics) -> None:
        epoch = metrics["epoch"]
        if not self.prunes or epoch == self.num_epochs:
            return
        if epoch not in self.reported:
            self.trial.report(metrics["validation_accuracy"], epoch)
        if self.trial.should_prune():
            from optuna.exceptions import TrialPruned

            raise TrialPruned


def open_study(name: str, storage: str) -> Study:
    """Return an Optuna study, created if it is new; a RunError if the storage cannot be opened."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        opened: Any = storage
        if "://" not in storage:
            path = Path(storage).absolute()  # Optuna's lock is a symbolic link to it
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=opened,
            study_name=name,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
            direction="maximize",
            load_if_exists=True,
        )
    except OSError:
        raise
    except Exception as error:  # SQLAlchemy, its drivers and Optuna raise many kinds
        reason = one_line(error)
        raise RunError(f"the study {name} cannot be opened in --storage: {reason}") from None


def _changed(run: PlannedRun, settings: Mapping[str, Any]) -> PlannedRun:
    flags = {**run.config.flat(), **settings}
    return PlannedRun(run.recipe, resolve_config(flags=flags, environment={}))


def _has_settings(record: RunRecord, config: Config) -> bool:
    planned = RunRecord(config=config.to_dict())
    return recipe_settings(record) == recipe_settings(planned) and all(
        record.flat_config.get(key) == planned.flat_config[key]
        for key in ("train.seed", "data.dataset")
    )


def _groups(trials: Sequence[FrozenTrial]) -> list[RunGroup]:
    return group_runs((str(record.name), record) for record in map(_record, trials))


def _record(trial: FrozenTrial) -> RunRecord:
    return RunRecord.model_validate(trial.user_attrs.get("record", {}))


def _summary(trial: FrozenTrial) -> dict[str, Any]:
    record, process = _record(trial), trial.user_attrs.get("process", {})
    summary = {key: process.get(key) for key in ("run", "host")}
    summary |= {"message": trial.user_attrs.get("message"), "state": trial.state.name.lower()}
    summary["settings"] = searched_settings(trial.params)
    return summary | {key: record[key] for key in ("seed", "validation_accuracy", "test_accuracy")}
