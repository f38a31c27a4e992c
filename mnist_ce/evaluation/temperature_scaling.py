"""Temperature scaling of a trained network, on held-out images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_ce.evaluation.calibration import fit_temperature, negative_log_likelihood
from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.runs.groups import recipe_settings
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibratedRun:
    """A run with a fitted temperature."""

    run: RunDir
    temperature: float  # `predict` divides the logits by it
    fitted_on: dict[str, Any]  # runs, images, and negative log-likelihood with and without it

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `prediction` in the run's record."""
        return {"temperature": self.temperature, "fitted_on": self.fitted_on}


def calibrate(
    run: str | Path,
    held_out: str | Path | Sequence[str | Path] = (),
    *,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
) -> CalibratedRun:
    """Fit a temperature to predictions on held-out images, and write it into the run's record.

    A run that was trained on all images has none held out. Its temperature is then fitted on other
    runs of the same recipe that have a validation split; 5,000 images of one run determine it
    loosely, several runs with different seeds, whose predictions are pooled, better.

    Args:
        run: The run's folder or name.
        held_out: The runs whose weights and validation images are used; none: the run itself.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        output: The folder of the runs.

    Raises:
        UsageError: If a run has no validation split, or another task, or is named twice, or no
            temperature fits.
        RunError: If a run is not finished.
    """
    target = _require_finished(load_model(run, output))
    named = [held_out] if isinstance(held_out, (str, Path)) else held_out
    sources = [_require_finished(load_model(name, output)) for name in named] or [target]
    if len({source.weights_sha256 for source in sources}) < len(sources):
        raise UsageError("a run is named twice with --with")
    for source in sources:
        _check_same_recipe(target, source)
    reports = [_validation_report(source, data_dir) for source in sources]
    logits = torch.cat([report.result.logits for report in reports])
    labels = torch.cat([report.result.labels for report in reports])
    temperature = fit_temperature(logits, labels, target.objective)
    fitted_on = {
        "runs": [
            {"run": source.path.parent.name, "weights_sha256": source.weights_sha256}
            for source in sources
        ],
        "dataset": reports[0].dataset,
        "split": reports[0].split,
        "num_images": len(labels),
        "nll": negative_log_likelihood(logits, labels, target.objective, temperature),
        "nll_uncalibrated": negative_log_likelihood(logits, labels, target.objective),
    }
    calibrated = CalibratedRun(RunDir(target.path.parent), temperature, fitted_on)
    with calibrated.run.lock() as locked:
        record = locked.read_record()
        if record is None or record.weights_sha256 != _record_of(target).weights_sha256:
            raise RunError(f"run {locked.path} was trained on meanwhile; calibrate it again")
        locked.write_record(record.updated(prediction=calibrated.to_dict()))
    return calibrated


def _require_finished(trained: TrainedModel) -> TrainedModel:
    if trained.record is None:
        raise UsageError(f"{trained.path} is not a run: there is no run.json beside it")
    if not trained.record.is_finished:
        run = trained.path.parent
        raise RunError(f"run {run} is not finished; continue it with --resume first")
    return trained


def _validation_report(source: TrainedModel, data_dir: str | Path | None) -> EvaluationReport:
    if not recipe_settings(_record_of(source))["data.validation_size"]:
        raise UsageError(
            f"run {source.path.parent} was trained on all its images, so none are left to fit a "
            "temperature to: train the same recipe with --set data.validation_size=5000 and name "
            "that run with --with"
        )
    return evaluate(source, split="validation", data_dir=data_dir, device="cpu")


def _check_same_recipe(target: TrainedModel, source: TrainedModel) -> None:
    for key in ("dataset_digest", "class_names", "objective"):
        mine, other = _record_of(target)[key], _record_of(source)[key]
        if mine != other:
            raise UsageError(
                f"runs {target.path.parent} and {source.path.parent} were trained for different "
                f"tasks: {key} is {mine} and {other}"
            )
    settings, others = (recipe_settings(_record_of(trained)) for trained in (target, source))
    compared = (settings.keys() | others.keys()) - {"data.validation_size"}
    if differing := sorted(key for key in compared if settings.get(key) != others.get(key)):
        logger.warning(
            f"{source.path.parent} was trained by another recipe than {target.path.parent} "
            f"({', '.join(differing)}), so its temperature may not suit"
        )


def _record_of(trained: TrainedModel) -> RunRecord:
    return trained.record or RunRecord()
