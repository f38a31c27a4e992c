"""The pictures in a run's folder, and one HTML file about one run or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.calibration import answer_confidences
from mnist_ce.evaluation.evaluate import EvaluationReport, load_splits_of
from mnist_ce.evaluation.inference import evaluate
from mnist_ce.evaluation.metrics import confusion_matrix
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
from mnist_ce.runs.run_dir import RunDir, find_run, list_runs
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


def draw_plots(run: RunDir, task: DataSplits | None) -> list[Path]:
    """Draw the pictures of a run into its folder: curves, confusion, mistakes, weights.

    `calibration.png` comes with them where the run's record says that it was calibrated.

    Args:
        run: A run with weights.
        task: What it was trained for; None, where the data is not there, leaves out the pictures
            that need test images.

    Returns:
        The files drawn.

    Raises:
        RunError: If the run's record or metrics are damaged, or a picture cannot be written.
        CheckpointError: If the run's weights cannot be loaded.
    """
    trained = load_model(run.model_path)
    record, rows = trained.record, run.read_metrics()
    pictures = {
        "curves": draw_curves(_curves_heading(run.name, record, len(rows)), rows),
        "weights": draw_weights(
            Heading(f"{run.name}: what the first layer looks for", f"trained on {trained.dataset}"),
            trained.model.layers[0].weight.detach().numpy(),
        ),
    }
    if task is not None:
        pictures |= _test_pictures(run.name, trained, task)
    for name, content in pictures.items():
        _write(run.path / f"{name}.png", content)
    return [run.path / f"{name}.png" for name in pictures]


def _test_pictures(name: str, trained: TrainedModel, task: DataSplits) -> dict[str, bytes]:
    result = evaluate(trained.model, task.test.images, task.test.labels, trained.objective)
    labels, answers = result.labels.numpy(), result.predictions.numpy()
    probabilities = trained.objective.probabilities(result.logits / trained.temperature).numpy()
    num_wrong = result.num_examples - result.num_correct
    about = (
        f"{task.dataset}, test split: {result.num_correct:,} of {result.num_examples:,} right "
        f"({100 * result.accuracy:.2f} %), loss {result.loss:.4f}"
    )
    pictures = {
        "confusion_matrix": draw_confusion_matrix(
            Heading(f"{name}: what is taken for what", about),
            confusion_matrix(result.predictions, result.labels, len(task.class_names)).tolist(),
            task.class_names,
        ),
        "mistakes": draw_mistakes(
            Heading(
                f"{name}: the most confident mistakes",
                f"{task.dataset}, test split: {num_wrong:,} mistakes among "
                f"{result.num_examples:,} images; #n is the n-th image, from 0",
            ),
            task.test.images.numpy(),
            labels,
            answers,
            probabilities,
            task.class_names,
        ),
    }
    if "temperature" in trained.record.get("prediction", {}):
        evaluated = EvaluationReport(
            trained, task.dataset, "test", task.class_names, result, task.test.images
        )
        pictures["calibration"] = reliability_diagram(evaluated, name)
    return pictures


def _curves_heading(name: str, record: dict[str, Any], num_epochs: int) -> Heading:
    figures = [f"{record.get('dataset')}, recipe {record.get('recipe')}, {num_epochs} epochs"]
    correct, total = record.get("test_correct"), record.get("test_total")
    if isinstance(correct, int) and isinstance(total, int) and total:
        figures.append(f"test: {correct:,} of {total:,} right ({100 * correct / total:.2f} %)")
    if isinstance(seconds := record.get("train_seconds"), int | float):
        figures.append(f"{seconds:.1f} s of training")
    return Heading(f"{name}: learning", " · ".join(figures))


def _reported(
    run: RunDir,
    data_dir: str | Path | None,
) -> ReportedRun:
    if not run.model_path.is_file():
        raise RunError(f"run {run.path} has no model.pt yet: let it finish an epoch first")
    trained = load_model(run.model_path)
    task = None
    try:
        task = load_splits_of(trained, data_dir=data_dir)
    except DataError as error:
        logger.warning(f"{run.name}: pictures of test images are not redrawn: {error}")
    draw_plots(run, task)
    paths = {name: run.path / f"{name}.png" for name in PICTURES}
    try:
        config = run.config_path.read_text(encoding="utf-8", errors="replace")
        pictures = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    except OSError as error:
        raise RunError(f"run {run.path} cannot be read: {one_line(error)}") from None
    return ReportedRun(run.name, trained.record, run.read_metrics(), config, pictures)


def _newest(output: Path) -> RunDir:
    for run, record in list_runs(output):
        if record.get("status") == "finished":
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
            label: answer_confidences(result.logits, result.labels, trained.objective, temperature)
            for label, temperature in temperatures.items()
        },
    )
