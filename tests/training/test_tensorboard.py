from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import stop_after

from mnist_ce import train
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import StoppedError
from mnist_ce.training.callbacks import TensorBoardCallback

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

pytestmark = pytest.mark.usefixtures("one_thread")


def written(run: Path) -> Counter[tuple[str, int]]:
    """Count the events of all files by tag and step, without those that a resumed run purges."""
    events: list[tuple[str, int]] = []
    for path in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if event.session_log.status == event.session_log.START and event.step:
                events = [(tag, step) for tag, step in events if step < event.step]
            events += [(value.tag, event.step) for value in event.summary.value]
    return Counter(events)


def test_the_events_hold_what_was_measured_also_of_a_continued_run(
    small_settings: dict[str, Any],
) -> None:
    settings = small_settings | {"data.validation_size": 100, "run.name": "a"}
    with pytest.raises(StoppedError):
        train(None, settings, **stop_after(9, TensorBoardCallback()))  # in the second epoch
    output = {"run.output": small_settings["run.output"]}
    for _ in range(2):  # the second time there is nothing left to train
        train(None, output, resume="a", callbacks=[TensorBoardCallback()])
    run = RunDir(Path(small_settings["run.output"]) / "a")
    found = written(run.path)
    scalars = {f"{kind}/{split}" for kind in ("loss", "accuracy") for split in ("train", "test")}
    scalars |= {"loss/validation", "accuracy/validation", "learning_rate", "images_per_second"}
    assert set(found) >= {(tag, epoch) for tag in scalars for epoch in (1, 2)}
    assert set(found.values()) == {1}
    events = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss/train")
    assert [(event.step, event.value) for event in events] == [
        (row["epoch"], pytest.approx(row["train_loss"])) for row in run.read_metrics()
    ]


def test_without_the_package_training_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    code, error = refused("train", "--tensorboard", "--output", str(tmp_path))
    assert code == 2
    assert "the package tensorboard is not installed: pip install 'mnist-ce[tensorboard]'" in error
    assert list(tmp_path.iterdir()) == []
