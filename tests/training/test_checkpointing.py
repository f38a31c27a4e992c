"""Writes in the background: no error is lost, none is written twice, none delays training."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import given

from mnist_ce.runs.checkpoint import save_tensors
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import EpochMetrics, Snapshot
from mnist_ce.system.errors import RunError
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.setup import AsyncCheckpointer
from mnist_ce.training.trainer import train


class Disk(RunDir):
    """A run directory each of whose writes fails if its content says so."""

    num_failed = 0

    def append_steps(self, rows: str) -> None:
        if "fail" in rows:
            self.num_failed += 1
            raise OSError("the disk is full")


class OneWrite(Snapshot):
    def write(self, run: RunDir) -> None:
        run.append_steps(self.step["content"])


@hypothesis.settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(["append", "save", "write", "busy"]), st.booleans()))
)
def test_every_failed_write_raises_once(
    calls: list[tuple[str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = Disk(tmp_path_factory.getbasetemp())
    num_raised = 0
    with AsyncCheckpointer(disk) as checkpointer:
        functions: dict[str, Callable[[str], object]] = {
            "append": lambda content: checkpointer.write(disk.append_steps, content, wait=False),
            "save": lambda content: checkpointer.save(OneWrite({"content": content}, {}, {})),
            "write": lambda content: checkpointer.write(disk.append_steps, content),
            "busy": lambda content: checkpointer.is_busy(),
        }
        for name, fails in calls:
            try:
                functions[name]("fail" if fails else "succeed")
            except RunError:
                num_raised += 1
        for _ in calls:
            try:
                checkpointer.write(disk.append_steps, "last")
            except RunError:
                num_raised += 1
    assert num_raised == disk.num_failed


def test_a_slow_disk_delays_no_training(
    small_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first snapshot is written until the third epoch ends; the second and third have none."""
    expected = train(None, small_settings | {"train.epochs": 4})
    released, first_saved = threading.Event(), threading.Event()
    saved_epochs: list[int] = []

    def slow(path: Path, content: dict[str, Any]) -> None:
        rows = json.loads(content["train_state"]["rows"]) if path.name == "resume.pt" else []
        if rows:
            assert released.wait(60)
            saved_epochs.append(len(rows))
            first_saved.set()
        save_tensors(path, content)

    class Release(Callback):
        def on_epoch(self, metrics: EpochMetrics) -> None:
            if metrics["epoch"] == 3:
                released.set()
                assert first_saved.wait(60)

    monkeypatch.setattr("mnist_ce.runs.train_state.save_tensors", slow)
    result = train(None, small_settings | {"train.epochs": 4}, callbacks=[Release()])
    assert saved_epochs == [1, 4]
    assert result.record.weights_sha256 == expected.record.weights_sha256


@pytest.mark.parametrize(
    "settings",
    [
        {"train.epochs": 1},
        {
            "train.epochs": 9,
            "train.patience": 1,
            "data.validation_size": 20,
            "optimizer.learning_rate": 1e-9,
            "run.save_every_seconds": 1e9,
            "train.test_every": 0,
        },
    ],
    ids=["last epoch", "out of patience"],
)
def test_a_finished_run_writes_each_file_once_after_its_last_epoch(
    small_settings: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []
    replace = Path.replace

    def counted(path: Path, target: Path) -> Path:
        writes.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    result = train(None, small_settings | settings)
    counts, num_epochs = Counter(writes), len(result.rows)
    assert counts["model.pt"] == counts["metrics.csv"] == counts["resume.pt"] - 1 <= num_epochs
    assert counts["run.json"] == 2  # at the start and at the end
    assert result.rows[-1]["test_accuracy"] == result.record.test_accuracy
    assert result.run.read_metrics()[-1]["test_accuracy"] == result.record.test_accuracy
