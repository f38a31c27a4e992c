"""Plots in the directory of a run, and one HTML page about one run or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.network.model import MLP
from mnist_ce.report.groups import group_section
from mnist_ce.report.page import PLOTS, ReportedRun, report_page
from mnist_ce.report.plots.canvas import Heading, percent
from mnist_ce.report.plots.curves import QUANTITIES, RunCurves, draw_curve, draw_curves
from mnist_ce.report.plots.evaluation import draw_confusion_matrix, reliability_diagram, result_line
from mnist_ce.report.plots.grids import draw_mistakes, draw_weights
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import FINISHED, RunDir, find_run, list_runs
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import DataError, RunError
from mnist_ce.system.files import write_atomically

logger = logging.getLogger(__name__)


def report(
    names: Sequence[str] = (),
    *,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    file: str | Path | None = None,
) -> Path:
    """Redraw the plots of runs and write one self-contained HTML file about them.

    Args:
        names: Names or directories of runs; none: the newest finished run in `output`.
        output: The directory of the runs.
        data_dir: The directory of the datasets; None: `MNIST_CE_DATA_DIR`, or the runs' own.
        file: None: `report.html` in the run's directory, or in `output` for several runs.

    Raises:
        RunError: A run does not exist, has no weights yet, or has a damaged file.
        CheckpointError: A run's weights cannot be loaded.
    """
    output = Path(output)
    runs = [find_run(name, output, FINISHED) for name in names]
    if not names:
        runs = [run for run, record in list_runs(output) if record.is_finished][:1]
    if not runs:
        raise RunError(f"there is no finished run in {output}: train one with 'mnist-ce train'")
    right: dict[str, Tensor] = {}
    reported = [_redraw(run, data_dir, right) for run in runs]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    curves = [run.curves for run in reported]
    drawn = {name: draw_curve(name, title, curves) for name in QUANTITIES}
    directory = runs[0].path if len(runs) == 1 else output
    path = directory / "report.html" if file is None else Path(file)
    write_atomically(path, report_page(reported, drawn, group_section(reported, right)))
    return path


def draw_plots(run: RunDir, report: EvaluationReport, rows: Sequence[EpochMetrics]) -> None:
    """Draw the plots of a run with weights into its directory, from its metrics and evaluation.

    These are curves, weights, confusion matrix, mistakes and calibration.
    """
    _draw(run, report.trained, RunCurves(run.name, rows, run.read_steps()), report)


def _redraw(run: RunDir, data_dir: str | Path | None, right: dict[str, Tensor]) -> ReportedRun:
    """Redraw the plots of a run; `right` gets the test images it gets right, bool [n], by name."""
    logger.info(f"drawing {run.name}")
    if not run.model_path.is_file():
        raise RunError(f"run {run.path} has no model.pt yet: let it finish an epoch first")
    trained = load_model(run.model_path)
    curves = RunCurves(run.name, run.read_metrics(), run.read_steps())
    report = None
    try:
        report = evaluate(trained, data_dir=data_dir, device="cpu")
        right[run.name] = report.result.predictions == report.result.labels
    except DataError as error:
        logger.warning(f"{run.name}: plots of test images are not redrawn: {error}")
    _draw(run, trained, curves, report)
    config = run.config_path.read_text(encoding="utf-8", errors="replace")
    paths = {name: run.path / f"{name}.png" for name in PLOTS}
    drawn = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return ReportedRun(run.path, trained.record or RunRecord(), curves, config, drawn)


def _draw(
    run: RunDir, trained: TrainedModel, curves: RunCurves, report: EvaluationReport | None
) -> None:
    record = trained.record or RunRecord()
    figures = [f"{record.dataset}, recipe {record.recipe}, {len(curves.rows)} epochs"]
    if record.test_correct is not None and record.test_total:
        correct, total = record.test_correct, record.test_total
        figures.append(f"test: {correct:,} of {total:,} correct ({percent(correct / total, 2)})")
    if record.train_seconds is not None:
        figures.append(f"{record.train_seconds:.1f} s of training")
    heading = Heading(f"{run.name}: learning curves", " · ".join(figures))
    drawn = {"curves": draw_curves(heading, [curves])}
    if isinstance(trained.model, MLP):
        weight = trained.model.layers[0].weight.detach().numpy()
        dataset = f"trained on {record.dataset}"
        heading = Heading(f"{run.name}: weights of the first layer", dataset)
        drawn["weights"] = draw_weights(heading, weight)
    if report is not None:
        drawn |= _test_plots(run.name, report)
    for name, png in drawn.items():
        write_atomically(run.path / f"{name}.png", png)


def _test_plots(name: str, report: EvaluationReport) -> dict[str, bytes]:
    result, class_names = report.result, report.class_names
    matrix = Heading(f"{name}: confusion matrix", result_line(report))
    mistakes = Heading(
        f"{name}: the most confident mistakes",
        f"{report.dataset}, test split: {result.num_examples - result.num_correct:,} of "
        f"{result.num_examples:,} images; #n is the n-th image, from 0",
    )
    return {
        "confusion_matrix": draw_confusion_matrix(matrix, report.confusion, class_names),
        "mistakes": draw_mistakes(
            mistakes,
            report.images.numpy(),
            result.labels.numpy(),
            result.predictions.numpy(),
            report.probabilities.numpy(),
            class_names,
        ),
        "calibration": reliability_diagram(report, name),
    }
