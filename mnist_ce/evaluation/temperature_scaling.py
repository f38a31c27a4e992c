"""Temperature scaling of a trained network, on held-out images (Guo et al. 2017, arXiv:1706.04599).

Dividing all logits by one number, the temperature, before the softmax removes most of the
calibration error and changes no prediction.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mnist_ce.evaluation.evaluate import SplitResult, evaluate
from mnist_ce.runs.groups import recipe_settings
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import Calibration, RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, UsageError

logger = logging.getLogger(__name__)


def calibrate(
    name: str | Path,
    held_out: Sequence[str | Path] = (),
    *,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    model: str | None = None,
) -> tuple[RunDir, Calibration]:
    """Fit a temperature to predictions on held-out images, and write it into the run's record.

    A run that was trained on all images has none held out. Its temperature is then fitted on other
    runs of the same recipe that have a validation split; 5,000 images of one run determine it
    loosely, several runs with different seeds, whose predictions are pooled, better. `held_out` are
    those runs; none: the run itself.

    A `RunError` if a run is not finished; a `UsageError` if it has no validation split or another
    task, or is named twice, or if no temperature fits.
    """
    target, *sources = (load_model(one, output, model=model) for one in (name, *held_out))
    sources = sources or [target]
    for trained in (target, *sources):
        if trained.record is None:
            raise UsageError(f"{trained.path} is not a run: there is no run.json beside it")
        if not trained.record.is_finished:
            name = trained.path.parent
            raise RunError(f"run {name} is not finished; continue it with --resume first")
    if len({source.weights_sha256 for source in sources}) < len(sources):
        raise UsageError("a run is named twice with --with")
    for source in sources:
        _check_same_recipe(target, source)
    place: dict[str, Any] = {"split": "validation", "data_dir": data_dir, "device": "cpu"}
    reports = [evaluate(one, **place) for one in sources]
    logits = torch.cat([report.result.logits for report in reports])
    labels = torch.cat([report.result.labels for report in reports])
    pooled = SplitResult(logits, labels, target.objective)
    temperature = fit_temperature(pooled)
    digests = [(one.path.parent.name, one.weights_sha256) for one in sources]
    fitted_on = {
        "runs": [{"run": run, "weights_sha256": digest} for run, digest in digests],
        "dataset": reports[0].dataset,
        "split": reports[0].split,
        "num_images": pooled.num_examples,
        "nll": pooled.negative_log_likelihood(temperature),
        "nll_uncalibrated": pooled.negative_log_likelihood(),
    }
    calibration = Calibration(temperature=temperature, fitted_on=fitted_on)
    record = target.record or RunRecord()
    with RunDir(target.path.parent).lock() as run:
        current = run.read_record()
        if current is None or current.weights_sha256 != record.weights_sha256:
            raise RunError(f"run {run.path} was trained on meanwhile; calibrate it again")
        run.write_record(current.updated(prediction=calibration.model_dump(exclude_unset=True)))
    return run, calibration


def fit_temperature(result: SplitResult) -> float:
    """Return the temperature with the lowest negative log-likelihood, on held-out images.

    That is convex in 1 / temperature, so there is one minimum; a UsageError if there is none.
    """
    from scipy.optimize import minimize_scalar

    low, high = math.log(1e-2), math.log(1e2)
    minimum = minimize_scalar(
        lambda value: result.negative_log_likelihood(math.exp(value)),
        bounds=(low, high),
        options={"xatol": 1e-8},
    )
    chance = math.log(max(result.logits.shape[1], 2))
    wrong = {
        "all are correct": result.num_correct == result.num_examples,
        "they are no better than chance": minimum.fun > chance - 1e-9,
        "the best is not within 0.01 and 100": not low + 1e-3 < minimum.x < high - 1e-3,
    }
    if reason := next((text for text, is_so in wrong.items() if is_so), None):
        raise UsageError(
            f"no temperature can be fitted to these {result.num_examples:,} predictions, because "
            f"{reason}; use more held-out images, or a better network"
        )
    return math.exp(minimum.x)


def _check_same_recipe(target: TrainedModel, source: TrainedModel) -> None:
    name, source_name = target.path.parent, source.path.parent
    record, source_record = (trained.record or RunRecord() for trained in (target, source))
    for key in ("dataset_digest", "class_names", "objective"):
        if record[key] != source_record[key]:
            raise UsageError(
                f"runs {name} and {source_name} were trained for different tasks: {key} is "
                f"{record[key]} and {source_record[key]}"
            )
    settings, source_settings = recipe_settings(record), recipe_settings(source_record)
    if not source_settings["data.validation_size"]:
        raise UsageError(
            f"run {source_name} was trained on all its images, so none are left to fit a "
            "temperature to: train the same recipe with --set data.validation_size=5000 and name "
            "that run with --with"
        )
    settings["data.validation_size"] = source_settings["data.validation_size"]
    keys = settings | source_settings
    if differing := sorted(k for k in keys if settings.get(k) != source_settings.get(k)):
        logger.warning(
            f"{source_name} was trained by another recipe than {name} "
            f"({', '.join(differing)}), so its temperature may not suit"
        )
