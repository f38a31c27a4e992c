from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from mnist_ce.cli import main
from mnist_ce.runs.run_dir import RunDir, shipped_weights

Capsys = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[int, str]]
METRICS = "epoch,train_loss,train_accuracy,learning_rate\n1,0.5,0.9,0.01\n2,0.4,0.91,0.01\n"


def make_run(folder: Path, name: str, **more: object) -> RunDir:
    run = RunDir(folder / name)
    run.path.mkdir(parents=True)
    record = {"format_version": 1, "created": "2026-01-01T00:00:00+00:00", "status": "finished"}
    record |= {"dataset": "mnist", "recipe": "default", "epochs": 2}
    record |= {"test_accuracy": 0.9876, "train_seconds": 12.34, **more}
    run.record_path.write_text(json.dumps(record))
    run.metrics_path.write_text(METRICS)
    return run


def listed(folder: Path, capsys: Capsys, *flags: str) -> str:
    assert main(["runs", "--output", str(folder), *flags]) == 0
    return capsys.readouterr().out


def test_runs_are_listed_newest_first(tmp_path: Path, capsys: Capsys) -> None:
    assert json.loads(listed(tmp_path / "nowhere", capsys, "--json")) == []
    assert main(["runs", "--output", str(tmp_path)]) == 0
    assert "there is no run" in capsys.readouterr().err
    make_run(tmp_path, "old", created="2025-05-05T00:00:00+00:00", weights_sha256="ab")
    make_run(tmp_path, "new", created="2026-06-06T00:00:00+00:00")
    (tmp_path / "not-a-run").mkdir()
    head, *lines = listed(tmp_path, capsys).splitlines()
    assert head.split() == ["name", "dataset", "recipe", "epochs", "test", "time", "state"]
    assert [line.split()[0] for line in lines] == ["new", "old"]
    assert lines[0].split() == [
        "new",
        "mnist",
        "default",
        "2/2",
        "98.76",
        "%",
        "12.3",
        "s",
        "finished",
    ]
    expected: dict[str, Any] = {"name": "old", "path": str(tmp_path / "old"), "dataset": "mnist"}
    expected |= {"recipe": "default", "objective": None, "created": "2025-05-05T00:00:00+00:00"}
    numbers: dict[str, Any] = {
        "epochs": 2,
        "epochs_done": 2,
        "test_accuracy": 0.9876,
        "train_seconds": 12.34,
    }
    expected |= {**numbers, "state": "finished", "weights_sha256": "ab", "group": None}
    assert json.loads(listed(tmp_path, capsys, "--json"))[1] == expected


def test_runs_that_differ_in_the_seed_alone_are_a_group(tmp_path: Path, capsys: Capsys) -> None:
    for name, seed, accuracy, rate in (
        *(("a", 0, 0.98, 0.1), ("b", 1, 0.99, 0.1), ("b-again", 1, 0.99, 0.1)),
        *(("other", 0, 0.5, 0.2), ("old", 0, 0.6, 0.01)),
    ):
        config = {"train": {"seed": seed}, "optimizer": {"learning_rate": rate}}
        config = {} if name == "old" else config
        make_run(tmp_path, name, seed=seed, test_accuracy=accuracy, config=config)
    make_run(tmp_path, "pruned", seed=2, status="pruned", config=config)
    config = {"optimizer": {"learning_rate": 0.1}}  # an MLP's, and a module of one's own
    make_run(tmp_path, "cnn", seed=2, test_accuracy=0.5, config=config, custom={"model": "a.CNN"})
    text = listed(tmp_path, capsys)
    assert text.count("±") == 1
    cells = ["mnist", "default", "learning_rate=0.1", "2", "98.50", "±", "0.71", "%"]
    assert text.splitlines()[-1].split() == [*cells, "12.3", "s"]
    groups = {run["name"]: run["group"] for run in json.loads(listed(tmp_path, capsys, "--json"))}
    assert groups["other"] is groups["pruned"] is groups["cnn"] is None
    assert groups["a"]["n"] == 2
    assert groups["a"]["seeds"] == [0, 1]
    assert groups["a"]["test_accuracy_mean"] == pytest.approx(0.985)


@pytest.mark.parametrize(
    ("status", "has_state", "state"),
    [
        ("finished", True, "finished"),
        ("stopped", True, "resumable"),
        ("failed", True, "resumable"),
        ("failed", False, "lost"),
        ("pruned", True, "pruned"),
        ("running", True, "resumable"),  # not locked: it was killed
        ("running", False, "lost"),
    ],
)
def test_the_state_of_a_run(
    tmp_path: Path, capsys: Capsys, status: str, has_state: bool, state: str
) -> None:
    run = make_run(tmp_path, "a", status=status)
    if has_state:
        run.resume_path.touch()
    assert json.loads(listed(tmp_path, capsys, "--json"))[0]["state"] == state
    if status == "running":
        with run.lock():
            assert json.loads(listed(tmp_path, capsys, "--json"))[0]["state"] == "running"


@pytest.mark.parametrize(
    ("columns", "head"),
    [
        (80, "name epochs test time state"),
        (70, "name epochs test state"),
        (200, "name dataset recipe epochs test time state"),
        (None, "name dataset recipe epochs test time state"),  # no terminal
    ],
)
def test_a_narrow_terminal_has_fewer_columns(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, columns: int, head: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns or 20))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None)
    name = "fashion-mnist-accurate-20260101-120000"
    make_run(tmp_path, name, dataset="fashion-mnist", recipe="accurate", epochs=100)
    make_run(tmp_path, "mnist-default-20260101-120000", status="stopped", test_accuracy=None)
    lines = listed(tmp_path, capsys).splitlines()
    assert lines[0].split() == head.split()
    assert max(map(len, lines)) <= (columns or 200)
    assert any(line.startswith(f"{name} ") for line in lines)


def test_damaged_runs_are_named_in_one_line(tmp_path: Path, capsys: Capsys) -> None:
    make_run(tmp_path, "good")
    make_run(tmp_path, "newer", format_version=2)
    for name in ("a", "b", "c"):
        make_run(tmp_path, name).record_path.write_text("{")
    make_run(tmp_path, "lost").record_path.rename(tmp_path / "lost" / "config.toml")
    assert main(["runs", "--output", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [run["name"] for run in json.loads(out)] == ["good"]
    assert len(err.splitlines()) == 1
    assert "damaged, and not listed: " in err
    assert err.endswith("; and 2 more\n")


def test_shipped_weights_are_never_deleted(tmp_path: Path, refused: Refused) -> None:
    copy = copytree(shipped_weights("mnist").parent, tmp_path / "mnist")  # as another checkout has
    (copy / "config.toml").touch()
    for name in ("mnist", "world-mlp", str(shipped_weights("world").parent), str(copy)):
        code, error = refused("runs", "--output", str(tmp_path), "--delete", name, "--yes")
        assert (code, "give the name of a run that" in error) == (2, True)
    assert (copy / "model.pt").is_file()


def test_a_run_is_deleted_by_name(
    tmp_path: Path, refused: Refused, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "a-run")
    run.config_path.touch()
    delete = ["runs", "--output", str(tmp_path), "--delete"]
    assert refused(*delete, "a-rum", "--yes")[1].endswith("did you mean a-run?")
    with run.lock():
        assert "is being trained" in refused(*delete, "a-run", "--yes")[1]
    for answer in ("n\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main([*delete, "a-run"]) == 1
    assert run.record_path.is_file()
    capsys.readouterr()
    assert main([*delete, "a-run", "--yes"]) == 0
    assert capsys.readouterr().out == f"deleted {run.path}\n"
    assert not list(tmp_path.iterdir())
