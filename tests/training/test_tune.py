from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import Start
from stopping import kill_at_write

from mnist_ce.cli import main
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.system.errors import DataError, RunError, StoppedError
from mnist_ce.training import search, trainer
from mnist_ce.training.callbacks import StopFlag, TrainResult
from mnist_ce.training.search import read_space
from mnist_ce.training.tune import (
    Plan,
    RunQueue,
    TuneResult,
    parse_grid,
    parse_seeds,
    plan_runs,
    tune,
)

POSTGRESQL = "MNIST_CE_TEST_POSTGRESQL"  # the URL of an empty database, as Optuna takes it
EVERY_WRITE = "MNIST_CE_TEST_EVERY_WRITE"
SPACE = """
[optimizer]
learning_rate = { low = 0.001, high = 0.5, log = true }
nesterov = [true, false]
[model]
hidden = [[16], [24, 16]]
[train]
batch_size = { low = 30, high = 90, step = 30 }
"""
Settings = dict[str, Any]
Refused = Callable[..., tuple[int, str]]


def trained(settings: Settings, *grids: str, seeds: Sequence[int] = (0,)) -> TuneResult:
    runs = plan_runs([None], settings, parse_grid(grids), seeds)
    return tune(Plan(runs))


def write_space(settings: Settings, space: str = SPACE) -> Path:
    path = Path(settings["run.output"]).with_suffix(".toml")
    path.write_text(space)
    return path


def search_options(settings: Settings, num_trials: int, *more: str) -> list[str]:
    return ["--search", str(write_space(settings)), "--trials", str(num_trials), *more]


def searched(
    settings: Settings,
    num_trials: int,
    seeds: Sequence[int] = (0,),
    *,
    space: str = SPACE,
    **options: Any,
) -> TuneResult:
    settings = {**settings, "data.validation_size": 100, "train.epochs": 3}
    runs, ranges = plan_runs([None], settings, {}, seeds), read_space(write_space(settings, space))
    return search.search(Plan(runs, ranges, num_trials, **options))


def records(folder: str | Path) -> dict[str, dict[str, Any]]:
    paths = Path(folder).glob("[!.]*/run.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def digests(folder: str | Path) -> dict[str, Any]:
    return {name: record.get("weights_sha256") for name, record in records(folder).items()}


def command(settings: Settings, *arguments: str) -> list[str]:
    assignments = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return ["tune", *arguments, *assignments]


def run_command(arguments: Sequence[str]) -> None:
    sys.exit(main(list(arguments)))


def test_every_config_point_and_seed_is_a_run_and_is_trained_once(
    small_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text("[optimizer]\nlearning_rate = 0.05\n")
    del small_settings["optimizer.learning_rate"]
    small_settings["run.output"] = str(tmp_path)
    both = command(small_settings, "-c", f"default,{tmp_path}/a.toml", "--seeds", "0,1", "--json")
    assert main(both) == 0
    result = json.loads(capsys.readouterr().out)
    runs = records(tmp_path)
    assert len(runs) == len(result["trials"]) == 4
    assert [group["n"] for group in result["groups"]] == [2, 2]
    assert [group["label"] for group in result["groups"]] == ["synthetic default", "synthetic a"]
    for group in result["groups"]:
        accuracies = [runs[name]["test_accuracy"] for name in group["runs"]]
        assert group["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    for record in runs.values():
        assert record["status"] == "finished"
        assert record["tune"]["study"] == result["study"]
    assert main(both) == 0  # again: nothing is missing
    assert json.loads(capsys.readouterr().out) == result
    assert records(tmp_path) == runs
    # Other seeds of the same settings, and a point of a grid
    more = command(small_settings, "--seeds", "1-2", "--grid", "optimizer.learning_rate=0.01,0.05")
    assert main(more) == 0
    table, progress = capsys.readouterr()
    assert "synthetic default learning_rate=0.01" in table
    assert table.count("±") == 2
    assert len(records(tmp_path)) == 8
    assert re.search(r"^run 1 of 4  epoch 1/2  loss .* s  0:00:0\d left$", progress, re.MULTILINE)
    *_, last = progress.splitlines()
    assert last.startswith("  mnist-ce report ")
    assert {Path(name).name for name in last.split()[2:]} < {*records(tmp_path)}
    assert main(["tune"]) == 2  # which would train one run, of nothing that was named
    assert "space.toml" in capsys.readouterr().err


def test_exactly_what_is_missing_is_trained(small_settings: Settings) -> None:
    output = Path(small_settings["run.output"])
    trained(small_settings, seeds=[0, 1])
    before = records(output)
    result = trained(small_settings, seeds=[0, 1, 2])
    after = records(output)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(result.groups[0].names) == 3
    shutil.rmtree(output / max(before))
    trained(small_settings, seeds=[0, 1, 2])
    assert digests(output) == {name: record["weights_sha256"] for name, record in after.items()}


def test_a_run_with_other_settings_is_not_taken_for_a_planned_one(
    small_settings: Settings, tmp_path: Path
) -> None:
    def plan(recipe: str, data: np.ndarray[Any, Any] | None = None) -> None:
        (tmp_path / "a.toml").write_text(recipe)
        if data is not None:
            np.savez(tmp_path / "own.npz", x_train=data, y_train=np.arange(100) % 10)
        settings = {k: v for k, v in small_settings.items() if k != "data.dataset"}
        tune(Plan(plan_runs([str(tmp_path / "a.toml")], settings, {}, [0])))

    images = np.random.default_rng(0).integers(0, 255, (100, 28, 28), dtype=np.uint8)
    own = f"[data]\ndataset = 'npz:{tmp_path}/own.npz'\n"
    plan(own, images)
    for recipe, data, differing in (
        (own + "[optimizer]\nmomentum = 0.25", images, "optimizer.momentum is 0.5 there and 0.25"),
        ("[data]\ndataset = 'synthetic'", images, "data.dataset is npz:"),
        (own, images[::-1], "dataset_digest is "),
    ):
        with pytest.raises(RunError, match=f"a-.*seed0 exists with other settings: {differing}"):
            plan(recipe, data)
    plan(own, images)


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ({"optimizer.nesterov": True}, "optimizer.momentum=0.0,0.5", "needs optimizer.momentum"),
        ({"objective.kind": "binary"}, "objective.positive=11,3", "positive = 11 is not among"),
        ({}, "data.dataset=csv:gone.csv,synthetic", "gone.csv"),
        ({}, "train.init='gone',''", "checkpoint gone is neither"),
        ({}, "optimizer.learning_rate=1e30,0.1", "the loss is"),
    ],
)
def test_a_run_that_cannot_be_trained_fails_alone(
    small_settings: Settings,
    settings: Settings,
    grid: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "dataset" in grid:
        del small_settings["data.dataset"]
    results = []
    for _ in range(2):  # it fails again, and the other is not trained again
        arguments = command(small_settings | settings, "--grid", grid, "--json")
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert "1 of 2 runs failed" in printed.err
        results.append(json.loads(printed.out))
        failed, complete = results[-1]["trials"]
        assert (failed["state"], complete["state"]) == ("fail", "complete")
        assert message in failed["message"]
    assert results[0] == results[1]


def test_a_trial_whose_values_do_not_go_together_fails_alone_and_the_best_is_first(
    small_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = SPACE.replace("[optimizer]", "[optimizer]\nmomentum = { choices = [0.0, 0.9] }")
    settings = {**small_settings, "data.validation_size": 100, "train.epochs": 1}
    options = ["--search", str(write_space(settings, space)), "--trials", "6", "--name", "s"]
    assert main(command(settings, *options, "--json")) == 0
    first = capsys.readouterr().out
    trials = json.loads(first)["trials"]
    assert [trial["state"] == "fail" for trial in trials] == [
        trial["settings"]["optimizer.nesterov"] and not trial["settings"]["optimizer.momentum"]
        for trial in trials
    ]
    assert 0 < sum(trial["state"] == "fail" for trial in trials) < 6
    assert main(command(settings, *options, "--json")) == 0
    assert capsys.readouterr().out == first
    assert main(command(settings, *options)) == 0
    table, notes = capsys.readouterr()
    table = table.partition("\n\n")[0]
    *_, following = notes.splitlines()
    assert main([*shlex.split(following)[1:], "--dry-run"]) == 0
    head, *rows = [line.split() for line in table.splitlines()]
    assert head[:2] == ["trial", "momentum"]
    states = [row[-1] for row in rows]
    accuracies = [float(row[-3]) for row in rows if row[-1] == "complete"]
    assert accuracies == sorted(accuracies, reverse=True)
    assert states == sorted(states)  # those that failed are the last


def test_missing_data_is_no_fault_of_a_trial(small_settings: Settings) -> None:
    with pytest.raises(DataError, match="gone"):
        searched({**small_settings, "data.dataset": "npz:/gone.npz"}, 2)
    assert not records(small_settings["run.output"])


def test_a_search_tests_the_chosen_setting_alone(small_settings: Settings) -> None:
    output = Path(small_settings["run.output"])
    result = searched(small_settings, 8, [0, 1], study="s")
    runs, chosen = records(output), result.chosen
    assert chosen is not None
    trials = {name: record for name, record in runs.items() if "-chosen" not in name}
    assert len(trials) == len(result.trials) == 8
    assert not any(record.get("test_accuracy") for record in trials.values())
    states = [trial["state"] for trial in result.trials]
    assert states.count("complete") >= 5
    assert states.count("pruned") == sum(run["status"] == "pruned" for run in runs.values()) > 0
    complete = [trial for trial in result.trials if trial["state"] == "complete"]
    best = max(trial["validation_accuracy"] for trial in complete)
    assert result.trials[chosen["chosen_trial"]]["validation_accuracy"] == best
    assert chosen["validation_accuracy"] == best
    finals = [record for name, record in runs.items() if "-chosen" in name]
    assert [record["seed"] for record in sorted(finals, key=lambda r: r["seed"])] == [0, 1]
    for record in finals:
        assert record["test_total"] == 100
        assert record["tune"]["chosen_trial"] == chosen["chosen_trial"]
        rate = record["config"]["optimizer"]["learning_rate"]
        assert rate == chosen["settings"]["optimizer.learning_rate"]
    # One process repeats a search exactly; more trials and seeds go on with it; a deleted run is
    # trained again with the same values.
    again = {**small_settings, "run.output": f"{output}-again"}
    assert searched(again, 3, study="s").trials == result.trials[:3]
    shutil.rmtree(Path(again["run.output"]) / "s-1")
    longer = searched(again, 4, [0, 1], study="s")
    assert longer.trials == result.trials[:4]
    both = digests(output).keys() & digests(again["run.output"]).keys()
    assert len(both) >= 4
    assert all(digests(output)[name] == digests(again["run.output"])[name] for name in both)
    for settings, space, differing in (
        ({"optimizer.momentum": 0.25}, SPACE, "optimizer.momentum is 0.5 there and 0.25 here"),
        ({}, SPACE.replace("0.5", "0.002"), "another search"),
        ({}, SPACE.replace("nesterov = [true, false]", ""), "nesterov is True there and False"),
    ):
        with pytest.raises(RunError, match=differing):
            searched({**small_settings, **settings}, 8, space=space, study="s")


@pytest.mark.slow
def test_processes_share_a_search(small_settings: Settings, start: Start) -> None:
    settings = {**small_settings, "train.epochs": 4, "data.validation_size": 100}
    arguments = command(settings, *search_options(settings, 5))
    processes = [start(run_command, arguments) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    runs = records(settings["run.output"])
    assert len(runs) == 6
    assert {record["process"]["id"] for record in runs.values()} == {p.pid for p in processes}
    assert {record["status"] for record in runs.values()} <= {"finished", "pruned"}


@pytest.mark.slow
def test_of_two_that_take_the_last_trial_one_trains_it(
    small_settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**small_settings, "data.validation_size": 100}
    arguments = command(settings, *search_options(settings, 3, "--name", "s"))
    train_here = trainer.train

    def train_after_the_other(*configs: Any, **options: Any) -> TrainResult:
        if configs and configs[0].run.name == "s-2":
            start(run_command, arguments).join()  # which trains all that is left
        return train_here(*configs, **options)

    monkeypatch.setattr("mnist_ce.training.tune.train", train_after_the_other)
    assert main(arguments) == 0
    runs = records(settings["run.output"])
    assert {name.removeprefix("s-")[:6] for name in runs} == {"0", "1", "2", "chosen"}
    assert len({record["process"]["id"] for record in runs.values()}) == 2


@pytest.mark.slow
def test_a_second_job_trains_too(small_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job waits until the second has begun a run."""
    output, train_here = Path(small_settings["run.output"]), trainer.train

    def train_second(*configs: Any, **options: Any) -> TrainResult:
        give_up_at = time.monotonic() + 120
        while not records(output) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        return train_here(*configs, **options)

    monkeypatch.setattr("mnist_ce.training.tune.train", train_second)
    assert main(command(small_settings, "--seeds", "0-2", "--jobs", "2")) == 0
    runs = records(output)
    assert {record["status"] for record in runs.values()} == {"finished"}
    ids = [record["process"]["id"] for record in runs.values()]
    assert len(ids) == 3
    assert any(number != os.getpid() for number in ids)


def result_of(folder: str | Path) -> dict[str, Any]:
    """All that two equal plans leave, but for times and processes."""
    files = [
        path
        for name in ("model.pt", "best.pt", "steps.csv", "config.toml")
        for path in Path(folder).glob(f"[!.]*/{name}")
    ]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    content = {name: text.replace(bytes(Path(folder)), b"") for name, text in content.items()}
    keys = ("status", "weights_sha256", "tune", "error", "validation_accuracy", "test_accuracy")
    found = {name: [record.get(key) for key in keys] for name, record in records(folder).items()}
    return {**content, **found}


@pytest.mark.slow
@pytest.mark.parametrize("of_a_search", [False, True])
def test_killed_before_every_write_and_repeated_it_gives_the_same(
    small_settings: Settings, tmp_path: Path, start: Start, of_a_search: bool
) -> None:
    """Each command of a second folder is killed at its n-th write, n = 0, 5, …, and repeated.

    With the variable `EVERY_WRITE` set, n = 0, 1, …: a quarter of an hour.
    """
    settings = {**small_settings, "data.validation_size": 100}
    options = ["--grid", "optimizer.learning_rate=0.1,1e30"]
    if of_a_search:
        options = search_options(settings, 2, "--name", "s")

    def arguments(folder: Path) -> list[str]:
        return command({**settings, "run.output": str(folder)}, *options)

    def run(target: Callable[..., object], folder: Path, *rest: object) -> object:
        process = start(target, arguments(folder), *rest)
        process.join()
        return process.exitcode

    code = run(run_command, tmp_path / "whole")
    expected = result_of(tmp_path / "whole")
    assert code == (0 if of_a_search else 1)  # one of two runs has failed
    for number in itertools.count(step=1 if os.environ.get(EVERY_WRITE) else 5):
        folder = tmp_path / f"killed-{number}"
        if run(killed_at_write, folder, number) == code:
            break
        assert run(run_command, folder) == code
        assert result_of(folder) == expected, number
        shutil.rmtree(folder)
    assert number > 40


def killed_at_write(arguments: Sequence[str], number: int) -> None:
    kill_at_write(number)
    run_command(arguments)


def test_a_stop_while_waiting_stops(small_settings: Settings) -> None:
    plan = Plan(plan_runs([None], small_settings, {}, [0]))
    run = plan.runs[0].run
    tune(plan)
    run.write_record((run.read_record() or RunRecord()).updated(status=RunState.RUNNING))
    stop = StopFlag()

    def set_stop() -> None:
        while not stop.is_checked:
            time.sleep(0.01)
        stop.signal_number = signal.SIGINT

    with run.lock():
        threading.Thread(target=set_stop).start()
        with pytest.raises(StoppedError):
            tune(plan, stop)


@pytest.mark.slow
def test_a_database_holds_a_search(
    small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped or killed trial is tried again with its values."""
    monkeypatch.setattr(search, "HEARTBEAT_SECONDS", 1)
    options: dict[str, Any] = {"storage": f"sqlite:///{tmp_path}/study.db", "study": "s"}
    for error in (StoppedError("", 2), SystemExit()):
        with monkeypatch.context() as patch:
            patch.setattr(RunQueue, "train", Mock(side_effect=error))
            with pytest.raises(type(error)):
                searched(small_settings, 2, **options)
    result = searched(small_settings, 2, **options)
    assert len(result.trials) == 2
    assert result.count("fail") == 0
    with pytest.raises(RunError, match="other settings: optimizer"):
        searched({**small_settings, "optimizer.momentum": 0.25}, 2, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_with_other_folders_share_a_search_by_a_database(
    small_settings: Settings, tmp_path: Path, start: Start, kind: str
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else os.environ.get(POSTGRESQL)
    if storage is None:
        pytest.skip(f"needs PostgreSQL: {POSTGRESQL} is not the URL of a database")
    small_settings |= {"train.epochs": 3, "data.validation_size": 100}
    more = ("--name", f"test-{time.time_ns()}", "--storage", storage)
    arguments = search_options(small_settings, 6, *more)
    folders = [str(tmp_path / name) for name in "ab"]
    commands = [command({**small_settings, "run.output": f}, *arguments) for f in folders]
    for process in [start(run_command, each) for each in commands]:
        process.join()
        assert process.exitcode == 0
    a, b = ({name for name in records(f) if "-chosen" not in name} for f in folders)
    assert len(a) + len(b) == 6
    assert not a & b


def test_seeds_and_grids_are_read() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    grid = {"schedule.kind": ["cosine", "step"], "model.hidden": [[8], [8, 4]], "a.b": [1, 2.5]}
    texts = ["schedule.kind=cosine,step", "model.hidden=[8],[8,4]", "a.b=1,2.5"]
    assert parse_grid(texts) == grid


def test_a_stop_names_the_command_that_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stopped = Mock(side_effect=StoppedError("continue with: mnist-ce train --resume a", 15))
    monkeypatch.setattr("mnist_ce.training.tune.train", stopped)
    assert main(["tune", "--dataset", "synthetic", "--output", str(tmp_path)]) == 143
    error = capsys.readouterr().err
    assert "mnist-ce tune" in error
    assert "--resume" not in error


def test_optuna_is_needed_for_a_search_alone(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, small_settings: Settings, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "mnist_ce.training.search")
    assert main(command(small_settings)) == 0
    code, error = refused("tune", "--search", "space.toml")
    assert code == 2
    assert "pip install 'mnist-ce[tune]'" in error
