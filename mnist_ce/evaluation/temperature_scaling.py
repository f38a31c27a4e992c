"""Calibrating a run: fit a temperature on held-out images, and keep it in the run's record."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_ce.config import Config
from mnist_ce.evaluation.calibration import fit_temperature, negative_log_likelihood
from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.files import one_line

__all__ = ["CalibratedRun", "calibrate"]

logger = logging.getLogger(__name__)

# What may differ between a run and the one that holds images out for it, because it is no part of
# the recipe.
_NOT_THE_RECIPE = frozenset(
    {
        *("data.dir", "data.mirror", "data.validation_size"),
        *("train.seed", "train.device", "train.threads", "train.step", "train.test_every"),
    }
)


@dataclass(frozen=True)
class CalibratedRun:
    """A run that has a temperature now.

    Args:
        run: Its folder.
        temperature: What `predict` divides its logits by.
        fitted_on: Which answers it was fitted to, and how much it helped there.
    """

    run: RunDir
    temperature: float
    fitted_on: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return what the run's record holds under `prediction`, and where that lies."""
        return {"temperature": self.temperature, "fitted_on": dict(self.fitted_on)}


def calibrate(
    run: str | Path,
    held_out: str | Path | Sequence[str | Path] = (),
    *,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
) -> CalibratedRun:
    """Fit a temperature to answers about images that a run did not learn from, and keep it.

    A run that learned from all training images has none to spare. For such a one, the same recipe
    is trained once more with images held out, and that run's temperature is taken; more than once,
    with other seeds and so other images, where 5,000 images leave the temperature uncertain. All
    the answers together then give one temperature.

    Args:
        run: The run's folder or name, or `pretrained`.
        held_out: The run, or the runs, whose validation images and weights are used; none: the run
            itself.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        output: The folder that holds the runs.

    Raises:
        UsageError: If a run that holds images out does not, or is of another kind, or is named
            twice, or no temperature fits.
        RunError: If a run is not finished, or the record cannot be written.
        CheckpointError: If a run is not there or its weights cannot be loaded.
        DataError: If the data cannot be had.
    """
    target = _finished(load_model(run, output))
    named = [held_out] if isinstance(held_out, (str, Path)) else held_out
    sources = [_finished(load_model(name, output)) for name in named] or [target]
    if len({source.weights_sha256 for source in sources}) < len(sources):
        raise UsageError("one and the same run is named twice with --with")
    for source in sources:
        _check_kinship(target, source)
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
    with calibrated.run.lock() as folder:
        record = folder.read_record()
        if record is None or record.weights_sha256 != _record_of(target).weights_sha256:
            raise RunError(f"run {folder.path} was trained on meanwhile; calibrate it again")
        try:
            folder.write_record(record.updated(prediction=calibrated.to_dict()))
        except OSError as error:
            raise RunError(f"{folder.record_path} cannot be written: {one_line(error)}") from None
    return calibrated


def _finished(trained: TrainedModel) -> TrainedModel:
    folder = trained.path.parent
    if trained.record is None:
        raise UsageError(f"{trained.path} is not a run: there is no run.json beside it")
    if not trained.record.is_finished:
        raise RunError(f"run {folder} is not finished; continue it with --resume first")
    return trained


def _validation_report(
    source: TrainedModel,
    data_dir: str | Path | None,
) -> EvaluationReport:
    if not _settings(source).get("data.validation_size"):
        raise UsageError(
            f"run {source.path.parent} learned from all its images, so none are left to fit a "
            "temperature to: train the same recipe with --set data.validation_size=5000 and name "
            "that run with --with"
        )
    return evaluate(source, split="validation", data_dir=data_dir, device="cpu")


def _check_kinship(target: TrainedModel, source: TrainedModel) -> None:
    for key in ("dataset_digest", "class_names", "objective"):
        mine, other = _record_of(target)[key], _record_of(source)[key]
        if mine != other:
            raise UsageError(
                f"runs {target.path.parent} and {source.path.parent} were trained for different "
                f"things: {key} is {mine} and {other}"
            )
    mine, other = _settings(target), _settings(source)
    differing = sorted(
        key
        for key in mine.keys() | other.keys()
        if mine.get(key) != other.get(key)
        and key not in _NOT_THE_RECIPE
        and not key.startswith("run.")
    )
    if differing:
        logger.warning(
            f"{source.path.parent} was trained by another recipe than {target.path.parent} "
            f"({', '.join(differing)}), so its temperature may not suit"
        )


def _record_of(trained: TrainedModel) -> RunRecord:
    return trained.record or RunRecord()


def _settings(trained: TrainedModel) -> dict[str, Any]:
    """Return the run's config by dotted key; keys newer than the run have their defaults."""
    defaults = RunRecord(config=Config().model_dump(mode="json")).flat_config
    return defaults | _record_of(trained).flat_config
