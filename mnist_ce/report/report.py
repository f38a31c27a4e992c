"""The pictures in a run's folder, and one HTML file about one run or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mnist_ce.evaluation.calibration import confidences
from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.report.page import PICTURES, ReportedRun, report_page
from mnist_ce.report.plots import (
    Heading,
    draw_calibration,
    draw_confusion_matrix,
    draw_curves,
    draw_mistakes,
    draw_overlaid_curves,
    draw_weights,
)
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, find_run, list_runs
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.errors import DataError, RunError
from mnist_ce.system.files import one_line, write_atomically

__all__ = ["draw_plots", "reliability_diagram", "report"]

logger = logging.getLogger(__name__)


def report(
    names: Sequence[str] = (),
    *,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    file: str | Path | None = None,
) -> Path:
    """Redraw the pictures of runs and make one self-contained HTML file about them.

    Args:
        names: Names or folders of runs; none: the newest finished run in `output`.
        output: The folder that holds the runs.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the runs' own.
        file: Where to write; None: `report.html` in the run's folder, or in `output` for several.

    Returns:
        The file written.

    Raises:
        RunError: If a run is not there or has no weights yet, or a file cannot be written.
        CheckpointError: If a run's weights cannot be loaded.
    """
    output = Path(output)
    runs = [find_run(name, output) for name in names] or [_newest(output)]
    reported = []
    for run in runs:
        logger.info(f"drawing {run.name}")
        reported.append(_reported(run, data_dir))
    if file is None:
        file = (runs[0].path if len(runs) == 1 else output) / "report.html"
    overlay = None
    if len(runs) > 1:
        overlay = draw_overlaid_curves(
            Heading("Loss, accuracy and learning rate", f"{len(runs)} runs"),
            [(item.name, item.rows) for item in reported],
        )
    _write(Path(file), report_page(reported, overlay))
    return Path(file)


def draw_plots(run: RunDir, report: EvaluationReport, rows: Sequence[EpochMetrics]) -> list[Path]:
    """Draw the plots of a run into its directory: curves, weights, confusion matrix, mistakes.

    `calibration.png` comes with them where the run was calibrated.

    Args:
        run: A run with weights.
        report: The result on the test split.
        rows: The rows of `metrics.csv`.

    Returns:
        The files drawn.

    Raises:
        OSError: If a file cannot be written.
    """
    return _write_plots(run, _run_plots(run, report.trained, rows) | _test_plots(run.name, report))


def _write_plots(run: RunDir, plots: dict[str, bytes]) -> list[Path]:
    for name, content in plots.items():
        _write(run.path / f"{name}.png", content)
    return [run.path / f"{name}.png" for name in plots]


def _run_plots(
    run: RunDir, trained: TrainedModel, rows: Sequence[EpochMetrics]
) -> dict[str, bytes]:
    record = trained.record or RunRecord()
    return {
        "curves": draw_curves(_curves_heading(run.name, record, len(rows)), rows),
        "weights": draw_weights(
            Heading(f"{run.name}: what the first layer looks for", f"trained on {record.dataset}"),
            trained.model.layers[0].weight.detach().numpy(),
        ),
    }


def _test_plots(name: str, report: EvaluationReport) -> dict[str, bytes]:
    trained, result = report.trained, report.result
    probabilities = trained.objective.probabilities(result.logits / trained.temperature).numpy()
    num_wrong = result.num_examples - result.num_correct
    about = (
        f"{report.dataset}, test split: {result.num_correct:,} of {result.num_examples:,} right "
        f"({100 * result.accuracy:.2f} %), loss {result.loss:.4f}"
    )
    plots = {
        "confusion_matrix": draw_confusion_matrix(
            Heading(f"{name}: what is taken for what", about), report.confusion, report.class_names
        ),
        "mistakes": draw_mistakes(
            Heading(
                f"{name}: the most confident mistakes",
                f"{report.dataset}, test split: {num_wrong:,} mistakes among "
                f"{result.num_examples:,} images; #n is the n-th image, from 0",
            ),
            report.images.numpy(),
            result.labels.numpy(),
            result.predictions.numpy(),
            probabilities,
            report.class_names,
        ),
    }
    if trained.record is not None and trained.record.prediction is not None:
        plots["calibration"] = reliability_diagram(report, name)
    return plots


def _curves_heading(name: str, record: RunRecord, num_epochs: int) -> Heading:
    figures = [f"{record.dataset}, recipe {record.recipe}, {num_epochs} epochs"]
    if record.test_correct is not None and record.test_total:
        accuracy = 100 * record.test_correct / record.test_total
        figures.append(
            f"test: {record.test_correct:,} of {record.test_total:,} right ({accuracy:.2f} %)"
        )
    if record.train_seconds is not None:
        figures.append(f"{record.train_seconds:.1f} s of training")
    return Heading(f"{name}: learning", " · ".join(figures))


def _reported(run: RunDir, data_dir: str | Path | None) -> ReportedRun:
    if not run.model_path.is_file():
        raise RunError(f"run {run.path} has no model.pt yet: let it finish an epoch first")
    trained, rows = load_model(run.model_path), run.read_metrics()
    try:
        draw_plots(run, evaluate(trained, data_dir=data_dir, device="cpu"), rows)
    except DataError as error:
        logger.warning(f"{run.name}: plots of test images are not redrawn: {error}")
        _write_plots(run, _run_plots(run, trained, rows))
    paths = {name: run.path / f"{name}.png" for name in PICTURES}
    try:
        config = run.config_path.read_text(encoding="utf-8", errors="replace")
        pictures = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    except OSError as error:
        raise RunError(f"run {run.path} cannot be read: {one_line(error)}") from None
    return ReportedRun(run.name, trained.record or RunRecord(), rows, config, pictures)


def _newest(output: Path) -> RunDir:
    for run, record in list_runs(output):
        if record.is_finished:
            return run
    raise RunError(f"there is no finished run in {output}: train one with 'mnist-ce train'")


def _write(path: Path, content: bytes | str) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {one_line(error)}") from None


def reliability_diagram(report: EvaluationReport, name: str | None = None) -> bytes:
    """Draw how sure and how right the answers are, without and with the fitted temperature.

    Args:
        report: The answers.
        name: What to call the network; None: its own name.

    Returns:
        A PNG file.
    """
    trained, result = report.trained, report.result
    temperatures = {"as trained": 1.0}
    if trained.temperature != 1:
        temperatures[f"temperature {trained.temperature:.3g}"] = trained.temperature
    heading = Heading(
        f"{name or trained.label}: how sure, how right",
        f"{report.dataset}, {report.split} split: {result.num_correct:,} of "
        f"{result.num_examples:,} right ({100 * result.accuracy:.2f} %), loss {result.loss:.4f}",
    )
    return draw_calibration(
        heading,
        {
            label: confidences(result.logits, result.labels, trained.objective, temperature)
            for label, temperature in temperatures.items()
        },
    )
