"""`steps.csv`: its rows, and what of it survives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, TrainingError
from mnist_ce.training.trainer import TrainResult

Train = Callable[..., TrainResult]
HEADER = "step,epoch,loss,accuracy,learning_rate\n"


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_the_rows_of_an_epoch_add_up_to_it(train_small: Train, kind: str) -> None:
    result = train_small("a", train__step=kind, run__log_interval=10, schedule__kind="cosine")
    rows = result.run.read_steps()
    # 34 batches of 30 images, but for the last, of 10; rows count from 1 over the whole run.
    assert [row["step"] for row in rows] == [10, 20, 30, 34, 44, 54, 64, 68]
    assert [row["epoch"] for row in rows] == [1] * 4 + [2] * 4
    weights = [300, 300, 300, 100]
    for epoch in (1, 2):
        own = [row for row in rows if row["epoch"] == epoch]
        for key in ("loss", "accuracy"):
            mean = sum(n * row[key] for n, row in zip(weights, own, strict=True)) / 1000
            row: Mapping[str, Any] = result.rows[epoch - 1]
            assert mean == pytest.approx(row[f"train_{key}"], rel=1e-5)
        assert own[-1]["learning_rate"] == pytest.approx(
            result.rows[epoch - 1]["learning_rate"], rel=1e-5
        )
    assert all(b["learning_rate"] < a["learning_rate"] for a, b in itertools.pairwise(rows))


def test_the_interval_changes_no_weight(train_small: Train) -> None:
    digests = {train_small(run__log_interval=n).record["weights_sha256"] for n in (1, 7, 1000)}
    assert len(digests) == 1


def test_the_steps_before_a_loss_that_is_not_finite_are_kept(
    train_small: Train, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="batch"):
        train_small("a", optimizer__learning_rate=1e30, run__log_interval=1)
    rows = RunDir(tmp_path / "a").read_steps()
    assert 0 < len(rows) < 34
    assert all(row["step"] == number for number, row in enumerate(rows, start=1))


def test_rows_are_truncated_to_a_step(tmp_path: Path) -> None:
    run, rows = RunDir(tmp_path), "10,1,2.5,0.1,0.01\n20,1,2,0.25,0.01\n30,1,1.5,0.5,0.01\n"
    assert run.read_steps() == []
    run.truncate_steps(20)  # a run of an older version has no such file
    assert not run.steps_path.exists()
    run.append_steps(rows)
    run.append_steps("40,1,1")  # by a process that was killed
    assert [row["step"] for row in run.read_steps()] == [10, 20, 30]
    run.truncate_steps(29)
    run.append_steps("30,1,9,0.5,0.01\n")
    expected = HEADER + rows.replace("1.5", "9")
    assert run.steps_path.read_text() == expected
    run.steps_path.write_text(expected.replace("20,", "2x,"))
    run.truncate_steps(40)
    assert run.steps_path.read_text() == HEADER + rows.splitlines(keepends=True)[0]


@pytest.mark.parametrize("text", ["loss\n1\n", HEADER + "1,1,x,1,1\n", HEADER + "1,1,1\n", "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.csv").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"steps\.csv is not a table of metrics by step"):
        RunDir(tmp_path).read_steps()
