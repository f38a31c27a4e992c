from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stopping import stop_after

from mnist_ce import train
from mnist_ce.cli import main
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import StoppedError
from mnist_ce.training.tensorboard import FOLDER, TensorBoardCallback

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

pytestmark = pytest.mark.usefixtures("small_data", "one_thread")


def read_events(run: Path) -> Any:
    return EventAccumulator(str(run / FOLDER)).Reload()


@pytest.mark.slow
def test_the_events_hold_the_settings_and_what_was_measured(tmp_path: Path) -> None:
    flags = ["--epochs", "2", "--tensorboard", "--output", str(tmp_path), "--name", "a", "-q"]
    command = ["train", *flags, "--lr", "0.25", "--set", "data.validation_size=100"]
    assert main([*command, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    run = tmp_path / "a"
    found = read_events(run)
    splits = ("train", "validation", "test")
    assert set(found.Tags()["scalars"]) == {
        *(f"{kind}/{split}" for kind in ("loss", "accuracy") for split in splits),
        *("learning_rate", "images_per_second"),
    }
    rows = RunDir(run).read_metrics()
    for tag, column in (("loss/train", "train_loss"), ("accuracy/test", "test_accuracy")):
        expected = [(row["epoch"], pytest.approx(row[column])) for row in rows]
        assert [(event.step, event.value) for event in found.Scalars(tag)] == expected
    (image,) = found.Images("mistakes")
    with Image.open(run / "mistakes.png") as plot:
        assert (image.step, image.width, image.height) == (2, *plot.size)
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["optimizer.learning_rate"].number_value == 0.25
    assert "run.name" not in values


def written(run: Path) -> Counter[tuple[str, int]]:
    """Count the events of all files by tag and step, without those that a resumed run purges."""
    events: list[tuple[str, int]] = []
    for path in sorted((run / FOLDER).iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if event.session_log.status == event.session_log.START and event.step:
                events = [(tag, step) for tag, step in events if step < event.step]
            events += [(value.tag, event.step) for value in event.summary.value]
    return Counter(events)


def test_a_continued_run_goes_on_in_its_events(small_settings: dict[str, Any]) -> None:
    with pytest.raises(StoppedError):
        train(None, small_settings, **stop_after(13, TensorBoardCallback()))  # in the second epoch
    output = {"run.output": small_settings["run.output"]}
    (run,) = Path(small_settings["run.output"]).iterdir()
    for name in ("latest", run.name):  # the second time there is nothing left to train
        result = train(None, output, resume=name, callbacks=[TensorBoardCallback()])
    assert set(written(run).values()) == {1}
    assert ("_hparams_/session_start_info", 0) in written(run)
    events = read_events(result.run.path).Scalars("loss/train")
    assert [(event.step, event.value) for event in events] == [
        (row["epoch"], pytest.approx(row["train_loss"])) for row in result.rows
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
