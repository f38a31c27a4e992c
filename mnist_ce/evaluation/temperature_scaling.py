"""Temperature scaling of a trained network, on held-out images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from mnist_ce.evaluation.calibration import fit_temperature, negative_log_likelihood
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.runs.groups import recipe_settings
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import Calibration, RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, UsageError

logger = logging.getLogger(__name__)


def calibrate(
    run: str | Path,
    held_out: str | Path | Sequence[str | Path] = (),
    *,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
) -> tuple[RunDir, Calibration]:
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
    target, record = _finished(load_model(run, output))
    names = [held_out] if isinstance(held_out, (str, Path)) else held_out
    loaded = [_finished(load_model(name, output)) for name in names] or [(target, record)]
    sources = [source for source, _ in loaded]
    if len({source.weights_sha256 for source in sources}) < len(sources):
        raise UsageError("a run is named twice with --with")
    for source, source_record in loaded:
        _check_same_recipe(target, record, source, source_record)
    reports = [
        evaluate(source, split="validation", data_dir=data_dir, device="cpu") for source in sources
    ]
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
    run_dir = RunDir(target.path.parent)
    calibration = Calibration(temperature=temperature, fitted_on=fitted_on)
    with run_dir.lock() as locked:
        current = locked.read_record()
        if current is None or current.weights_sha256 != record.weights_sha256:
            raise RunError(f"run {locked.path} was trained on meanwhile; calibrate it again")
        locked.write_record(current.updated(prediction=calibration.model_dump(exclude_unset=True)))
    return run_dir, calibration


def _finished(trained: TrainedModel) -> tuple[TrainedModel, RunRecord]:
    if trained.record is None:
        raise UsageError(f"{trained.path} is not a run: there is no run.json beside it")
    if not trained.record.is_finished:
        run = trained.path.parent
        raise RunError(f"run {run} is not finished; continue it with --resume first")
    return trained, trained.record


def _check_same_recipe(
    target: TrainedModel, record: RunRecord, source: TrainedModel, source_record: RunRecord
) -> None:
    name, source_name = target.path.parent, source.path.parent
    for key in ("dataset_digest", "class_names", "objective"):
        if record[key] != source_record[key]:
            raise UsageError(
                f"runs {name} and {source_name} were trained for different tasks: {key} is "
                f"{record[key]} and {source_record[key]}"
            )
    settings, source_settings = recipe_settings(record), recipe_settings(source_record)
    if not source_settings.pop("data.validation_size"):
        raise UsageError(
            f"run {source_name} was trained on all its images, so none are left to fit a "
            "temperature to: train the same recipe with --set data.validation_size=5000 and name "
            "that run with --with"
        )
    compared = (settings | source_settings).keys() - {"data.validation_size"}
    if differing := sorted(k for k in compared if settings.get(k) != source_settings.get(k)):
        logger.warning(
            f"{source_name} was trained by another recipe than {name} "
            f"({', '.join(differing)}), so its temperature may not suit"
        )
