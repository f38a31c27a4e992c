from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from mnist_ce.cli import main
from mnist_ce.evaluation.verification import verify
from mnist_ce.runs.checkpoint import load_tensors, save_tensors
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.callbacks import TrainResult


@pytest.fixture(scope="module")
def finished(
    train_small_in: Callable[..., TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    settings = {"data__validation_size": 20, "average__decay": 0.9}
    return train_small_in(tmp_path_factory.mktemp("runs"), "a", **settings).run.path


@pytest.fixture
def run(small_data: None, finished: Path, tmp_path: Path) -> RunDir:
    return RunDir(copytree(finished, tmp_path / "a"))


def test_a_finished_run_is_verified(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run.path), "--verify", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verified"]
    names = ["config", "weights", "metrics", "resume", "data", "test", "best"]
    assert [check["name"] for check in content["checks"] if check["ok"]] == names


def in_record(**changes: Any) -> Callable[[RunDir], None]:
    def change(run: RunDir) -> None:
        record = json.loads(run.record_path.read_text())
        run.record_path.write_text(json.dumps({**record, **changes}))

    return change


def other_rate(run: RunDir) -> None:
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("learning_rate = 0.1", "learning_rate = 0.2"))


def one_weight(path: Callable[[RunDir], Path]) -> Callable[[RunDir], None]:
    def change(run: RunDir) -> None:
        state = load_tensors(path(run))
        state["l3.bias"][0] += 5.0
        save_tensors(path(run), state)

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (in_record(weights_sha256="0" * 64), ["weights"]),
        (in_record(num_parameters=3), ["weights"]),
        (in_record(test_correct=99), ["test"]),
        (in_record(test_accuracy=0.99), ["metrics", "test"]),
        (in_record(epochs_done="2"), ["metrics", "resume"]),
        (in_record(best_epoch=1_000), ["best"]),
        (in_record(train_accuracy=0.99), ["metrics"]),
        (in_record(train_seconds=99.0), ["metrics"]),
        (in_record(best_validation_accuracy=1.0), ["best"]),
        (in_record(dataset_digest="1" * 64), ["data"]),
        (in_record(config=3), ["config", "weights"]),
        (other_rate, ["config"]),
        (one_weight(lambda run: run.model_path), ["weights", "resume", "test"]),
        (one_weight(lambda run: run.best_path), ["best"]),
        (lambda run: run.write_metrics(run.read_metrics()[:-1]), ["metrics"]),
    ],
)
def test_a_mismatch_is_found(
    run: RunDir, change: Callable[[RunDir], None], found: list[str]
) -> None:
    change(run)
    _, checks = verify(str(run.path))
    assert set(found) <= {check.name for check in checks if not check.ok}


def test_a_mismatch_fails_the_command(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    in_record(test_correct=99)(run)
    assert main(["evaluate", str(run.path), "--verify"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL  test " in out
    assert "a is not as recorded: test" in err
    for name, code in (("--json", 2), (str(run.path / "none"), 1)):
        assert main(["evaluate", name, "--verify"]) == code


# The digits that world was also trained on are drawn first.
@pytest.mark.parametrize("name", ["mnist", pytest.param("world", marks=pytest.mark.slow)])
def test_the_shipped_weights_are_as_recorded(mnist_dir: Path, name: str) -> None:
    run, checks = verify(str(load_model(name).path.parent), data_dir=mnist_dir)
    failed = [check.detail for check in checks if not check.ok]
    assert (run.name, failed) == (name, [])
