"""Which checkpoint a name, or none, stands for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ce import load_model, predict
from mnist_ce.cli import main
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.runs.run_dir import (
    RESERVED_NAMES,
    SHIPPED_WEIGHTS,
    RunDir,
    find_checkpoint,
    find_run,
    newest_run,
    shipped_weights,
)
from mnist_ce.system.errors import CheckpointError
from mnist_ce.training.callbacks import TrainResult

Train = Callable[..., TrainResult]


def test_the_shipped_weights_have_names(tmp_path: Path) -> None:
    world, mnist = (load_model(name, tmp_path) for name in ("world", "mnist"))
    assert world.weights_sha256 != mnist.weights_sha256
    for alias, trained in (("pretrained", mnist), ("mnist-mlp", mnist), ("world-mlp", world)):
        assert load_model(alias, tmp_path).weights_sha256 == trained.weights_sha256
    for trained in (world, mnist):
        assert trained.record is not None
        assert trained.weights_sha256 == trained.record.weights_sha256
        assert trained.model.sizes == (784, 520, 320, 240, 120, 10)
        assert trained.temperature != 1


def test_the_newest_finished_run_of_ten_classes_is_the_default(
    tmp_path: Path, train_small: Train
) -> None:
    assert find_checkpoint(None, tmp_path) == shipped_weights("mnist")
    with pytest.raises(CheckpointError, match="there is no finished run of 10 classes in"):
        find_checkpoint("latest", tmp_path)
    for name, settings in (
        ("whole", {}),
        ("some", {"data__classes": [3, 8]}),
        ("yes-no", {"objective__kind": "binary"}),
    ):
        train_small(name, train__epochs=1, **settings)
    for checkpoint in (None, "latest"):
        assert find_checkpoint(checkpoint, tmp_path) == tmp_path / "whole" / "model.pt"


def test_the_shipped_weights_are_no_runs_of_the_user() -> None:
    folder = shipped_weights("world").parents[1]  # of the runs, in a checkout
    newest = newest_run(folder)  # one that a developer has trained, or none
    assert newest is None or newest[0].name not in SHIPPED_WEIGHTS


def test_a_run_with_the_name_of_shipped_weights_is_reached_by_its_path(
    tmp_path: Path, train_small: Train
) -> None:
    train_small("new", train__epochs=1)
    for name in RESERVED_NAMES:  # as an earlier version allowed
        shutil.copytree(tmp_path / "new", tmp_path / name)
        assert find_checkpoint(tmp_path / name, tmp_path) == tmp_path / name / "model.pt"
        assert find_run(str(tmp_path / name), tmp_path).path == tmp_path / name
        if name in SHIPPED_WEIGHTS:
            assert find_checkpoint(name, tmp_path) == shipped_weights(name)
            assert find_run(name, tmp_path).path == shipped_weights(name).parent


def test_latest_is_the_newest_run_that_a_command_can_use(tmp_path: Path) -> None:
    states = {"old": "stopped", "stopped": "stopped", "done": "finished", "failed": "failed"}
    for day, (name, status) in enumerate(states.items(), 1):
        (tmp_path / name).mkdir()
        record = RunRecord(format_version=1, created=f"2026-01-0{day}", status=RunState(status))
        RunDir(tmp_path / name).write_record(record)
        if status == "stopped":
            RunDir(tmp_path / name).resume_path.touch()
    assert find_run("latest", tmp_path, RunState.RESUMABLE).name == "stopped"
    assert find_run("latest", tmp_path).name == "done"
    with RunDir(tmp_path / "stopped").lock():  # it is being trained
        assert find_run("latest", tmp_path, RunState.RESUMABLE).name == "old"
    with pytest.raises(CheckpointError, match="there is no finished run of 10 classes"):
        find_checkpoint("latest", tmp_path)


def test_predict_uses_world_and_names_the_newest_run(
    tmp_path: Path,
    train_small: Train,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((90, 90), 255, np.uint8)).save("blank.png")

    def line(*arguments: str) -> str:
        assert main(["predict", "blank.png", *arguments]) == 0
        (first, *others) = capsys.readouterr().err.splitlines()
        assert others == []
        return first

    assert line() == "predicting with the shipped weights world"
    accuracy = train_small("mine").record["test_accuracy"]
    named = line("--output", ".")
    assert named.startswith("predicting with the shipped weights world; the newest run is mine")
    assert f"{100 * accuracy:.2f} %" in named
    assert "--checkpoint latest" in named
    assert "mine" in line("--output", ".", "--checkpoint", "latest")
    record = RunDir(Path("mine")).read_record()
    assert record is not None
    RunDir(Path("mine")).write_record(record.model_copy(update={"custom": {"model": "x.CNN"}}))
    assert line("--output", ".") == "predicting with the shipped weights world"


def test_a_label_is_the_digit_not_its_place_among_the_classes(
    tmp_path: Path, train_small: Train
) -> None:
    train_small("some", train__epochs=1, data__classes=[3, 8])
    trained = load_model("some", tmp_path)
    assert (trained.labels, trained.class_names) == ((3, 8), ("3", "8"))
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:16] = 255
    (record,) = predict(image, checkpoint=trained, min_confidence=0.0)
    assert str(record.label) == record.class_name
    assert [str(k.label) for k in record.top_k] == [k.class_name for k in record.top_k]
    train_small("yes-no", train__epochs=1, objective__kind="binary", data__classes=[3, 7])
    assert load_model("yes-no", tmp_path).labels == (0, 1)
