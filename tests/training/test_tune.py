from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mnist_ce.cli import main
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, StoppedError
from mnist_ce.training.plan import make_plan, parse_grid, parse_seeds, plan_runs, read_space
from mnist_ce.training.trainer import train
from mnist_ce.training.tune import TuneResult, open_study, tune

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
POSTGRESQL = "MNIST_CE_TEST_POSTGRESQL"  # the URL of an empty database, as Optuna takes it
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


def search(
    settings: Settings, tmp_path: Path, num_trials: int, seeds: Sequence[int] = (0,), **options: Any
) -> TuneResult:
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    settings = {**settings, "data.validation_size": 100, "train.epochs": 3}
    runs = plan_runs([None], settings, {}, seeds)
    return tune(make_plan(runs, read_space(file), num_trials, **options))


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


def test_every_config_point_and_seed_is_a_run_and_is_trained_once(
    small_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text("[optimizer]\nlearning_rate = 0.05\n")
    small_settings.pop("optimizer.learning_rate")
    given = [f"--set={key}={json.dumps(value)}" for key, value in small_settings.items()]
    command = ["tune", "-c", f"default,{tmp_path}/a.toml", "--seeds", "0,1", *given]
    command += ["--output", str(tmp_path), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    runs = records(tmp_path)
    assert len(runs) == len(found["trials"]) == 4
    assert [group["n"] for group in found["groups"]] == [2, 2]
    assert [group["label"] for group in found["groups"]] == ["synthetic default", "synthetic a"]
    for group in found["groups"]:
        accuracies = [runs[name]["test_accuracy"] for name in group["runs"]]
        assert group["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    for record in runs.values():
        assert record["status"] == "finished"
        assert record["tune"]["study"] == found["study"]
    assert main(command) == 0  # again: nothing is left to do
    assert json.loads(capsys.readouterr().out) == found
    assert records(tmp_path) == runs
    # Other seeds of the same settings, and a point of a grid
    more = ["--seeds", "1-2", "--grid", "optimizer.learning_rate=0.01,0.05"]
    assert main([*command[:1], *command[3:-1], *more]) == 0
    table = capsys.readouterr().out
    assert "synthetic default learning_rate=0.01" in table
    assert table.count("±") == 2
    assert len(records(tmp_path)) == 8


def test_a_run_with_other_settings_is_not_taken_for_a_planned_one(
    small_settings: Settings,
) -> None:
    train(None, {**small_settings, "run.name": "other", "train.seed": 3})
    runs = plan_runs([None], small_settings, {}, [0])
    plan = make_plan(runs, {}, 1)
    folder = Path(small_settings["run.output"])
    (folder / "other").rename(folder / runs[0].config.run.name)
    with pytest.raises(RunError, match="exists with other settings"):
        tune(plan)


def test_a_search_tests_the_chosen_setting_alone(small_settings: Settings, tmp_path: Path) -> None:
    result = search(small_settings, tmp_path, 8, [0, 1])
    runs, chosen = records(tmp_path), result.chosen
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
        assert record["tune"]["tested_trials"] == [chosen["chosen_trial"]]
        rate = record["config"]["optimizer"]["learning_rate"]
        assert rate == chosen["settings"]["optimizer.learning_rate"]
    # One process repeats a search exactly, and more trials go on with it.
    again = {**small_settings, "run.output": str(tmp_path / "again")}
    for a, b in zip(search(again, tmp_path, 3).trials, result.trials[:3], strict=True):
        assert (a["settings"], a["state"]) == (b["settings"], b["state"])


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_run_of_a_killed_process_is_resumed_by_another(
    small_settings: Settings, tmp_path: Path
) -> None:
    settings = {**small_settings, "train.epochs": 80, "run.save_every_seconds": 0.05}
    given = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "mnist_ce", "tune", "--seeds", "0-3", *given]
    with subprocess.Popen([*command, "--output", str(tmp_path)], stderr=subprocess.PIPE) as other:
        runs: list[RunDir] = []

        def trained_by(process_id: int) -> list[RunDir]:
            names = [name for name, r in records(tmp_path).items() if is_by(r, process_id)]
            runs = map(RunDir, map(tmp_path.joinpath, names))
            return [run for run in runs if 0 < len(run.read_metrics()) < 60]

        def is_by(record: dict[str, Any], process_id: int) -> bool:
            return bool(record["status"] == "running" and record["process"]["id"] == process_id)

        def kill() -> None:
            wait_for(lambda: trained_by(os.getpid()))  # both are at work
            wait_for(lambda: trained_by(other.pid))
            runs.extend(trained_by(other.pid))
            other.kill()

        try:
            wait_for(lambda: trained_by(other.pid))
            killer = threading.Thread(target=kill)
            killer.start()
            plan = make_plan(plan_runs(["default"], settings, {}, range(4)), {}, 0)
            result = tune(plan)
            killer.join()
        finally:
            other.kill()
    assert len([*tmp_path.glob(".tune/*.journal")]) == 1
    assert result.count("complete") == 4
    found = records(tmp_path)
    assert {record["status"] for record in found.values()} == {"finished"}
    (killed,) = runs
    assert found[killed.name]["process"]["id"] == os.getpid()
    assert found[killed.name]["train_seconds"] > 0
    whole = train(None, {**settings, "train.seed": found[killed.name]["seed"], "run.name": "whole"})
    assert whole.record.weights_sha256 == found[killed.name]["weights_sha256"]
    first = result.trials[0]["run"]
    assert result.groups[0].records[0]["weights_sha256"] == found[first]["weights_sha256"]


def test_a_process_on_another_machine_counts_as_killed_after_long_silence(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(plan_runs([None], small_settings, {}, [0]), {}, 0)
    trial = open_study(plan.study, plan.storage).ask()
    trial.set_user_attr("process", {"host": "elsewhere", "seen_at": time.time()})
    monkeypatch.setattr("mnist_ce.training.tune.time.sleep", Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):  # it waits
        tune(plan)
    trial.set_user_attr("process", {"host": "elsewhere", "seen_at": time.time() - 1_000})
    (done,) = tune(plan).trials
    assert (done["state"], done["run"]) == ("complete", plan.runs[0].config.run.name)
    assert done["host"] != "elsewhere"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_is_shared_like_a_journal(
    small_settings: Settings, tmp_path: Path, kind: str
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else os.environ.get(POSTGRESQL)
    if storage is None:
        pytest.skip(f"needs PostgreSQL: {POSTGRESQL} is not the URL of a database")
    options: dict[str, Any] = {"storage": storage, "study": f"test-{time.time_ns()}"}
    result = search(small_settings, tmp_path, 2, **options)
    assert result.count("complete") == 2
    assert search(small_settings, tmp_path, 2, **options).to_dict() == result.to_dict()


def test_seeds_and_grids_are_read() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    grid = parse_grid(["schedule.kind=cosine,step", "model.hidden=[8],[8,4]", "a.b=1,2.5"])
    assert grid == {
        "schedule.kind": ["cosine", "step"],
        "model.hidden": [[8], [8, 4]],
        "a.b": [1, 2.5],
    }


def test_a_stop_names_the_command_that_continues(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    stopped = Mock(side_effect=StoppedError("continue with: mnist-ce train --resume a", 15))
    monkeypatch.setattr("mnist_ce.training.tune.train", stopped)
    code, error = refused("tune", "--dataset", "synthetic", "--output", str(tmp_path))
    assert code == 143
    assert "mnist-ce tune" in error
    assert "--resume" not in error


def test_without_optuna_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, error = refused("tune")
    assert code == 2
    assert "pip install 'mnist-ce[tune]'" in error
