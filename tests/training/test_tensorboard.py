from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mnist_ce import train
from mnist_ce.cli import main
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import StoppedError, UsageError
from mnist_ce.training.callbacks import BatchInfo, Callback, StopFlag
from mnist_ce.training.tensorboard import FOLDER, TensorBoardCallback

pytest.importorskip("tensorboard")
SPLITS = ("train", "validation", "test")

pytestmark = pytest.mark.usefixtures("small_data", "one_thread")


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / FOLDER)).Reload()


def scalars(run: Path, tag: str) -> Any:
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def test_the_events_hold_what_was_measured(tmp_path: Path) -> None:
    flags = ["--epochs", "2", "--tensorboard", "--output", str(tmp_path), "--name", "a", "-q"]
    assert main(["train", *flags, "--set", "data.validation_size=100"]) == 0
    run = tmp_path / "a"
    found = events(run)
    assert set(found.Tags()["scalars"]) == {
        *(f"{kind}/{split}" for kind in ("loss", "accuracy") for split in SPLITS),
        *("learning_rate", "images_per_second"),
    }
    rows = RunDir(run).read_metrics()
    for tag, column in (("loss/train", "train_loss"), ("accuracy/test", "test_accuracy")):
        expected = [(row["epoch"], pytest.approx(row[column])) for row in rows]
        assert scalars(run, tag) == expected
    (image,) = found.Images("mistakes")
    with Image.open(run / "mistakes.png") as plot:
        assert (image.step, image.width, image.height) == (2, *plot.size)


def test_the_settings_are_hyper_parameters(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    settings = {"run.output": str(tmp_path), "run.name": "a", "train.epochs": 1, "run.plots": False}
    with TensorBoardCallback() as events_file:
        train(None, {**settings, "optimizer.learning_rate": 0.25}, callbacks=[events_file])
    content = events(tmp_path / "a").PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = started.session_start_info.hparams
    assert values["optimizer.learning_rate"].number_value == 0.25
    assert values["optimizer.nesterov"].bool_value is False
    assert values["data.dataset"].string_value == "auto"
    assert "run.name" not in values


def test_a_continued_run_goes_on_in_its_events(tmp_path: Path) -> None:
    class Stopper(Callback):
        """Stops in the middle of the second epoch."""

        def on_batch(self, info: BatchInfo) -> None:
            if info.epoch == 2 and info.batch == 3:
                stop.signal_number = 15

    settings = {"run.output": str(tmp_path), "run.name": "a", "train.epochs": 3, "run.plots": False}
    stop = StopFlag()
    with pytest.raises(StoppedError), TensorBoardCallback() as events_file:
        train(None, settings, callbacks=[events_file, Stopper()], stop=stop)
    with TensorBoardCallback() as events_file:
        result = train(None, {"run.output": str(tmp_path)}, resume="a", callbacks=[events_file])
    assert scalars(tmp_path / "a", "loss/train") == [
        (row["epoch"], pytest.approx(row["train_loss"])) for row in result.rows
    ]


def test_a_dry_run_leaves_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--tensorboard", "-q"]) == 0
    assert list(tmp_path.rglob("*")) == []


def test_without_the_package_training_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UsageError):
        TensorBoardCallback()
    code, error = refused("train", "--tensorboard", "--output", str(tmp_path))
    assert code == 2
    assert "needs the package tensorboard: pip install 'mnist-ce[tensorboard]'" in error
    assert list(tmp_path.iterdir()) == []
