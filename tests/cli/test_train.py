from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnist_ce.cli import main

pytestmark = pytest.mark.usefixtures("small_data")


def test_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "--output", str(tmp_path), "--set", "model.hidden=[40]"]
    assert main(["train", *words]) == 0
    assert not list(tmp_path.iterdir())
    assert "dry run" in capsys.readouterr().out


def test_json_is_all_of_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", str(tmp_path), "--epochs", "1", "--set", "model.hidden=[40]", "--name"]
    assert main(["train", *words, "one", "--json", "--set", "run.plots=false"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["name"] == "one"
    assert "epoch 1/1" in told.err
    assert main(["train", *words, "one"]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err

    assert main(["evaluate", "one", "--output", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == sum(map(sum, report["confusion_matrix"])) == 1_000
    assert report["correct"] == sum(row[n] for n, row in enumerate(report["confusion_matrix"]))
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high
