from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from mnist_ce import evaluate, load_model, train
from mnist_ce.cli import main
from mnist_ce.evaluation.temperature_scaling import calibrate
from mnist_ce.report.plots.evaluation import draw_reliability
from mnist_ce.report.report import report
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.trainer import TrainResult

Train = Callable[..., TrainResult]
pytestmark = pytest.mark.usefixtures("small_data")


def record_of(run: RunDir) -> RunRecord:
    return run.read_record() or RunRecord()


@pytest.fixture(scope="module")
def runs(train_small_in: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = train_small_in(folder, "held-out", data__validation_size=300).run
    train_small_in(folder, "all", train__epochs=1)
    train_small_in(folder, "yes", train__epochs=1, objective__kind="binary")
    stopped = RunDir(folder / "stopped")
    stopped.path.mkdir()
    for file in (folder / "bare.pt", stopped.model_path):
        file.write_bytes(run.model_path.read_bytes())
    stopped.write_record(record_of(run).updated(status=RunState.STOPPED))
    return folder


@pytest.fixture
def held_out(runs: Path, tmp_path: Path) -> RunDir:
    return RunDir(copytree(runs / "held-out", tmp_path / "held-out"))


@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_a_run_is_fitted_to_its_own_held_out_images(
    tmp_path: Path, train_small: Train, kind: str
) -> None:
    run = train_small("a", objective__kind=kind, data__validation_size=300).run
    before = record_of(run)
    _, calibration = calibrate("a", output=tmp_path)
    fitted = calibration.fitted_on or {}
    content = {"temperature": calibration.temperature, "fitted_on": fitted}
    assert record_of(run) == before.updated(prediction=content)
    assert (fitted["num_images"], fitted["split"]) == (300, "validation")
    assert [source["run"] for source in fitted["runs"]] == ["a"]
    assert fitted["nll"] < fitted["nll_uncalibrated"]
    assert fitted["nll_uncalibrated"] == pytest.approx(before["validation_loss"], rel=1e-5)
    assert load_model("a", tmp_path).temperature == calibration.temperature != 1


def test_another_runs_temperature_is_taken(
    tmp_path: Path, train_small: Train, held_out: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_small("all").run
    arguments = ["calibrate", "all", "--with", "held-out", "--output", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == record_of(run)["prediction"]
    assert "warning" not in err
    assert record_of(held_out).prediction is None
    assert record_of(run)["prediction"]["temperature"] == calibrate(held_out.path)[1].temperature
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("temperature ")


def test_several_runs_give_one_temperature(train_small: Train, held_out: RunDir) -> None:
    other = train_small("other", data__validation_size=300, train__seed=5).run
    one, two = (calibrate(run.path)[1].fitted_on or {} for run in (held_out, other))
    both = calibrate(held_out.path, [held_out.path, other.path])[1].fitted_on or {}
    assert both["num_images"] == 600
    assert [source["run"] for source in both["runs"]] == ["held-out", "other"]
    plain = (one["nll_uncalibrated"] + two["nll_uncalibrated"]) / 2
    assert both["nll_uncalibrated"] == pytest.approx(plain)
    # No temperature can do better on both than each does with its own.
    assert (one["nll"] + two["nll"]) / 2 - 1e-9 <= both["nll"] < plain


def test_evaluate_and_report_show_both_ways(
    tmp_path: Path, held_out: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    uncalibrated = evaluate("held-out", output=tmp_path)
    _, calibration = calibrate("held-out", output=tmp_path)
    content = evaluate("held-out", output=tmp_path).to_dict()
    for key in ("loss", "correct", "accuracy", "confusion_matrix"):
        assert content[key] == uncalibrated.to_dict()[key]  # a temperature changes no prediction
    before, after = uncalibrated.to_dict()["calibration"], content["calibration"]
    assert before["temperature"] == 1
    assert after["temperature"] == calibration.temperature
    assert after["num_bins"] == len(after["bins"]) == 15
    for key in ("nll", "ece", "ece_interval"):
        assert before[key] == before[f"{key}_uncalibrated"] == after[f"{key}_uncalibrated"]
        assert after[key] != before[key]
    assert after["nll_uncalibrated"] == pytest.approx(content["loss"], rel=1e-5)
    file = tmp_path / "drawn.png"
    assert main(["evaluate", "held-out", "--output", str(tmp_path), "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"NLL {after['nll']:.4f}, T = {calibration.temperature:.4g}\n" in out
    assert f"NLL {before['nll']:.4f}, T = 1\n" in out
    assert file.read_bytes() != draw_reliability(uncalibrated)
    report(["held-out"], output=tmp_path)
    assert (held_out.path / "calibration.png").read_bytes() == file.read_bytes()
    assert main(["evaluate", "--plot", "drawn.jpg"]) == 2
    assert "end its name in .png" in capsys.readouterr().err


def test_training_on_drops_the_temperature(tmp_path: Path, held_out: RunDir) -> None:
    calibrate("held-out", output=tmp_path)
    train(None, {"run.output": str(tmp_path), "train.epochs": 3}, resume="held-out")
    assert record_of(held_out)["epochs_done"] == 3
    assert load_model("held-out", tmp_path).temperature == 1


def test_another_recipe_is_warned_of(
    train_small: Train, held_out: RunDir, log_warnings: Callable[[], list[str]]
) -> None:
    wide = train_small("wide", model__hidden=[64], train__seed=3).run
    calibrate(wide.path, [held_out.path])
    (warning,) = log_warnings()
    assert "by another recipe than" in warning
    assert "(model.hidden)" in warning


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("all", 2, "was trained on all its images"),
        ("held-out --with held-out --with held-out", 2, "a run is named twice"),
        ("yes --with held-out", 2, "were trained for different tasks: class_names"),
        ("stopped", 1, "is not finished"),
        ("bare.pt", 2, "is not a run"),
        ("nothing", 1, "is neither a file nor a run"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    runs: Path,
    refused: Callable[..., tuple[int, str]],
    arguments: str,
    exit_code: int,
    message: str,
) -> None:
    words = arguments.replace("bare.pt", str(runs / "bare.pt")).split()
    code, error = refused("calibrate", *words, "--output", str(runs))
    assert code == exit_code
    assert message in error
