"""The plots that a run draws at its end."""

from __future__ import annotations

import logging

from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import EvaluationReport, SplitResult
from mnist_ce.report.report import draw_plots
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.system.errors import StoppedError
from mnist_ce.system.text import one_line
from mnist_ce.training.callbacks import StopFlag, TrainResult

logger = logging.getLogger(__name__)


def draw_final_plots(
    result: TrainResult, splits: DataSplits, test: SplitResult, stop: StopFlag
) -> None:
    """Draw the plots of a complete run into its directory; a failure is only logged.

    Raises:
        StoppedError: If training was stopped while it finished.
    """
    hint = f"draw them with: mnist-ce report {result.run.path}"
    if (number := stop.signal_number) is not None:
        raise StoppedError(f"the run is complete, but its plots are not: {hint}", number)
    names = splits.class_names
    trained = TrainedModel(
        model=result.model,
        path=result.run.model_path,
        class_names=names,
        objective=splits.objective,
        record=result.record,
        weights_sha256=str(result.record.weights_sha256),
    )
    report = EvaluationReport(trained, splits.dataset, "test", names, test, splits.test.images)
    try:
        draw_plots(result.run, report, result.rows)
    except Exception as error:  # whatever it is: the run itself is complete
        logger.warning(f"the run is complete, but its plots are not: {one_line(error)}; {hint}")
