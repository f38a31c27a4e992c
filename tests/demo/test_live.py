from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from conftest import SMALL_RUN
from PIL import Image
from running import CLIENT

from mnist_ce.cli.terminal import LivePage
from mnist_ce.data import dataset as dataset_module
from mnist_ce.data.splits import Dataset
from mnist_ce.demo import live
from mnist_ce.demo.live import MAX_POINTS, runs_now
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.runs.records import RunState
from mnist_ce.training.callbacks import Callback, TrainResult
from mnist_ce.training.trainer import train

HEADER = "step,epoch,loss,accuracy,learning_rate\n"


def test_a_run_is_watched_as_it_goes_on(
    train_small: Callable[..., TrainResult], tmp_path: Path
) -> None:
    run = train_small("a").run
    run.steps_path.write_text(HEADER + "10,1,2.0,0.2,0.1\n20,1,1,0.5,0.1\n30,2,0.5,0.8,0.1\n4")
    seen = runs_now(tmp_path, ())
    assert seen["shown"] == ["a"]
    (curve,) = seen["curves"]
    assert curve["steps"] == [[10, 2, 0.2, 0.1], [20, 1, 0.5, 0.1], [30, 0.5, 0.8, 0.1]]
    losses = [row["train_loss"] for row in run.read_metrics()]
    assert [row[:3] for row in curve["epochs"]] == [[20, 1, losses[0]], [30, 2, losses[1]]]
    assert seen["snapshot"]["num_tested"] > 0

    run.steps_path.write_text(HEADER + "10,1,2.0,0.2,0.1\n")  # resumed from an earlier step
    with run.lock():
        seen = runs_now(tmp_path, ())
    assert seen["curves"][0]["steps"] == [[10, 2, 0.2, 0.1]]
    assert seen["runs"][0]["state"] == "running"
    run.write_record(run.read_record().updated(status=RunState.STOPPED))  # type: ignore[union-attr]
    assert runs_now(tmp_path, ())["runs"][0]["state"] == "resumable"

    rows = "".join(f"{step},1,{step % 2},0.5,0.1\n" for step in range(1, 4 * MAX_POINTS + 1))
    run.steps_path.write_text(HEADER + rows)
    steps = runs_now(tmp_path, ["a", "gone"])["curves"][0]["steps"]  # in means
    assert len(steps) == MAX_POINTS
    assert {loss for _, loss, _, _ in steps} == {0.5}


@pytest.mark.parametrize("dataset", ["folder:{}", "mnist+folder:{}"])
def test_a_run_on_images_of_ones_own_has_its_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_small: Callable[..., Dataset],
    dataset: str,
) -> None:
    digits = load_small("mnist").train
    for number, (pixels, label) in enumerate(zip(digits.images[:60], digits.labels, strict=False)):
        path = tmp_path / "images" / str(int(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - pixels.numpy()).save(path)
    load_dataset = dataset_module.load_dataset

    def load(name: str, *arguments: Any, **options: Any) -> Dataset:
        return (load_dataset if ":" in name else load_small)(name, *arguments, **options)

    monkeypatch.setattr(dataset_module, "load_dataset", load)
    dataset = dataset.format(tmp_path / "images")
    train(None, SMALL_RUN | {"data.dataset": dataset, "run.output": str(tmp_path)})
    assert runs_now(tmp_path, ())["snapshot"]["num_tested"] > 0


def test_mistakes_have_the_probabilities_of_predict(
    train_small: Callable[..., TrainResult], tmp_path: Path
) -> None:
    run = train_small("warm", train__epochs=1, optimizer__learning_rate=0.01).run
    record = run.read_record()
    assert record is not None
    run.write_record(record.updated(prediction={"temperature": 3.0}))
    report = evaluate(run.model_path)
    is_wrong = report.result.predictions != report.result.labels
    expected = report.probabilities.amax(dim=1)[is_wrong].sort(descending=True).values[:16].tolist()
    mistakes = runs_now(tmp_path, ["warm"])["snapshot"]["mistakes"]
    assert [mistake["probability"] for mistake in mistakes] == pytest.approx(expected)
    assert mistakes[0]["label"] == str(report.result.labels[mistakes[0]["index"]].item())


def test_whatever_fails_is_the_reason_why_there_are_no_mistakes(
    train_small: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_small("a").run

    def fail(*_: object, **__: object) -> None:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(live, "evaluate_split", fail)
    snapshot = runs_now(tmp_path, ())["snapshot"]
    assert (snapshot["mistakes"], snapshot["reason"]) == ([], "first line")
    assert snapshot["weights"]
    run.model_path.write_bytes(b"damaged")
    snapshot = runs_now(tmp_path, ())["snapshot"]
    assert "weights" not in snapshot
    assert "model.pt" in snapshot["reason"]
    run.model_path.unlink()  # as before the end of the first epoch
    assert runs_now(tmp_path, ())["snapshot"] is None


@pytest.mark.slow
def test_training_has_a_page_until_it_ends(
    small_data: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the file of a student')")
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    class AskForRuns(Callback):
        def close(self) -> None:
            deadline = time.monotonic() + 60
            while not opened and time.monotonic() < deadline:
                time.sleep(0.05)
            models = CLIENT.get(f"{opened[0].partition('#')[0]}v1/models").json()
            assert models[-1]["name"] == "its own"

    settings = SMALL_RUN | {"run.output": str(tmp_path), "run.name": "its own"}
    train(None, settings, callbacks=[LivePage(opens_browser=True), AskForRuns()])
    url, fragment = opened[0].split("#")
    assert fragment == "runs=its%20own"
    assert f"live page: {opened[0]}" in capfd.readouterr().err
    with pytest.raises(httpx.ConnectError):
        CLIENT.get(f"{url}healthz")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_page_ends_with_a_killed_training(tmp_path: Path) -> None:
    code = (
        "import os, time; from types import SimpleNamespace; from pathlib import Path\n"
        "from mnist_ce.cli.terminal import LivePage\n"
        "run = SimpleNamespace(path=Path('a').absolute(), name='a')\n"
        "LivePage(opens_browser=False).on_start(SimpleNamespace(run=run))\n"
        "time.sleep(3); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    # The server has the pipe of stderr too, so that this returns when both have ended.
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE}
    assert subprocess.run([sys.executable, "-c", code], timeout=60, **options).returncode == -9
