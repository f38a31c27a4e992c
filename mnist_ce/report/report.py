"""Plots in the directory of a run, and one HTML page about one run or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.network.model import MLP
from mnist_ce.report.page import PLOTS, ReportedRun, report_page
from mnist_ce.report.plots.canvas import Heading, percent
from mnist_ce.report.plots.curves import RunMetrics, Series, draw_curves
from mnist_ce.report.plots.evaluation import draw_confusion_matrix, draw_reliability
from mnist_ce.report.plots.images import draw_mistakes, draw_weights
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import FINISHED, RunDir, find_run, list_runs
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import DataError, RunError, UsageError
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
    directory = runs[0].path if len(runs) == 1 else output
    path = directory / "report.html" if file is None else Path(file)
    write_atomically(path, report_page([_redraw(run, data_dir) for run in runs]))
    return path


def _redraw(run: RunDir, data_dir: str | Path | None) -> ReportedRun:
    logger.info(f"drawing {run.name}")
    if not run.model_path.is_file():
        raise RunError(f"run {run.path} has no model.pt yet: let it finish an epoch first")
    trained = load_model(run.model_path)
    metrics, is_right = RunMetrics(run.read_metrics(), run.read_steps()), None
    _draw_model(run, trained, metrics)
    try:
        evaluation = evaluate(trained, data_dir=data_dir, device="cpu")
        is_right = evaluation.result.predictions == evaluation.result.labels
        _draw_evaluation(run, evaluation)
    except (DataError, UsageError) as error:  # a record may ask for data that is not to be had
        logger.warning(f"{run.name}: plots of test images are not redrawn: {error}")
    config = run.config_path.read_text(encoding="utf-8", errors="replace")
    paths = {name: run.path / f"{name}.png" for name in ("curves", *PLOTS)}
    plots = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return ReportedRun(run.path, trained.record or RunRecord(), metrics, config, plots, is_right)


def draw_plots(run: RunDir, evaluation: EvaluationReport, rows: Sequence[EpochMetrics]) -> None:
    """Draw the plots of a run with weights into its directory, from its metrics and evaluation.

    These are curves, weights, confusion matrix, mistakes and calibration.
    """
    _draw_model(run, evaluation.trained, RunMetrics(rows, run.read_steps()))
    _draw_evaluation(run, evaluation)


def _draw_model(run: RunDir, trained: TrainedModel, metrics: RunMetrics) -> None:
    record = trained.record or RunRecord()
    facts = [f"{record.dataset}, recipe {record.recipe}, {len(metrics.epochs)} epochs"]
    if record.test_correct is not None and record.test_total:
        correct, total = record.test_correct, record.test_total
        facts.append(f"test: {correct:,} of {total:,} correct ({percent(correct / total, 2)})")
    if record.train_seconds is not None:
        facts.append(f"{record.train_seconds:.1f} s of training")
    heading = Heading(f"{run.name}: learning curves", " · ".join(facts))
    curves = draw_curves(heading, [Series(run.name, [metrics])])
    write_atomically(run.path / "curves.png", curves)
    if isinstance(trained.model, MLP):
        weight = trained.model.layers[0].weight.detach().numpy()  # [units, 784]
        dataset = f"trained on {record.dataset}"
        heading = Heading(f"{run.name}: weights of the first layer", dataset)
        write_atomically(run.path / "weights.png", draw_weights(heading, weight))


def _draw_evaluation(run: RunDir, evaluation: EvaluationReport) -> None:
    for name, draw in (
        ("confusion_matrix", draw_confusion_matrix),
        ("mistakes", draw_mistakes),
        ("calibration", draw_reliability),
    ):
        write_atomically(run.path / f"{name}.png", draw(evaluation, run.name))
