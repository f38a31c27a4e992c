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
from mnist_ce.training.callbacks import TrainResult

pytestmark = pytest.mark.usefixtures("small_data")


def record_of(folder: Path, name: str) -> RunRecord:
    return RunDir(folder / name).read_record() or RunRecord()


@pytest.fixture(scope="module")
def trained(
    train_small_in: Callable[..., TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder, held_out = tmp_path_factory.mktemp("runs"), {"data__validation_size": 300}
    run = train_small_in(folder, "held-out", **held_out).run
    train_small_in(folder, "other-seed", train__seed=5, **held_out)
    train_small_in(folder, "yes", objective__kind="binary", **held_out)
    train_small_in(folder, "all")
    train_small_in(folder, "wide", train__epochs=1, model__hidden=[64])
    stopped = RunDir(copytree(run.path, folder / "stopped"))
    stopped.write_record(record_of(folder, "held-out").updated(status=RunState.STOPPED))
    (folder / "bare.pt").write_bytes(run.model_path.read_bytes())
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return copytree(trained, tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("name", "others"),
    [("held-out", []), ("yes", []), ("all", ["held-out"]), ("all", ["held-out", "other-seed"])],
)
def test_a_temperature_is_fitted_to_held_out_images_and_recorded(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str, others: list[str]
) -> None:
    sources, before = others or [name], record_of(runs, name)
    arguments = ["calibrate", name, *(word for other in others for word in ("--with", other))]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert record_of(runs, name) == before.updated(prediction=content)
    assert "warning" not in err
    assert load_model(name).temperature == content["temperature"] != 1
    fitted = content["fitted_on"]
    assert (fitted["num_images"], fitted["split"]) == (300 * len(sources), "validation")
    assert [source["run"] for source in fitted["runs"]] == sources
    losses = [record_of(runs, source)["validation_loss"] for source in sources]
    assert fitted["nll_uncalibrated"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    alone = [calibrate(source)[1].fitted_on or {} for source in sources]
    # No temperature can do better on both than each does with its own.
    best = sum(fit["nll"] for fit in alone) / len(alone)
    assert best - 1e-9 <= fitted["nll"] < fitted["nll_uncalibrated"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("temperature ")


def test_evaluate_and_report_show_both_ways(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uncalibrated = evaluate("held-out")
    _, calibration = calibrate("held-out")
    content = evaluate("held-out").to_dict()
    for key in ("loss", "correct", "accuracy", "confusion_matrix"):
        assert content[key] == uncalibrated.to_dict()[key]  # a temperature changes no prediction
    before, after = uncalibrated.to_dict()["calibration"], content["calibration"]
    assert (before["temperature"], after["temperature"]) == (1, calibration.temperature)
    assert after["num_bins"] == len(after["bins"]) == 15
    for key in ("nll", "ece", "ece_interval"):
        assert before[key] == before[f"{key}_uncalibrated"] == after[f"{key}_uncalibrated"]
        assert after[key] != before[key]
    file = runs / "drawn.png"
    assert main(["evaluate", "held-out", "--plot", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"NLL {after['nll']:.4f}, T = {calibration.temperature:.4g}\n" in out
    assert f"NLL {before['nll']:.4f}, T = 1\n" in out
    assert file.read_bytes() != draw_reliability(uncalibrated)
    report(["held-out"])
    assert (runs / "held-out" / "calibration.png").read_bytes() == file.read_bytes()
    assert main(["evaluate", "--plot", "drawn.jpg"]) == 2
    assert "end its name in .png" in capsys.readouterr().err


def test_training_on_drops_the_temperature(runs: Path) -> None:
    calibrate("held-out")
    train(None, {"train.epochs": 3}, resume="held-out")
    assert record_of(runs, "held-out")["epochs_done"] == 3
    assert load_model("held-out").temperature == 1


@pytest.mark.usefixtures("runs")
def test_another_recipe_is_warned_of(log_warnings: Callable[[], list[str]]) -> None:
    calibrate("wide", ["held-out"])
    (warning,) = log_warnings()
    assert "by another recipe than" in warning
    assert "(model.hidden, train.epochs)" in warning


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("all", 2, "was trained on all its images"),
        ("held-out --with held-out --with held-out", 2, "a run is named twice"),
        ("yes --with held-out", 2, "were trained for different tasks: class_names"),
        ("stopped", 1, "is not finished"),
        ("checkpoints/bare.pt", 2, "is not a run"),
        ("nothing", 1, "is neither a file nor a run"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    refused: Callable[..., tuple[int, str]], arguments: str, exit_code: int, message: str
) -> None:
    code, error = refused("calibrate", *arguments.split())
    assert code == exit_code
    assert message in error
