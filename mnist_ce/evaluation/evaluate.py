"""Evaluation of a trained network on one split of a dataset."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_ce.config import OWN_DATASET, resolve_config
from mnist_ce.data import dataset as datasets
from mnist_ce.data.dataset import CUSTOM, DataSplits, custom_dataset, load_splits, log_once
from mnist_ce.data.splits import CONVERSIONS, DIGITS, convert
from mnist_ce.evaluation import metrics
from mnist_ce.network.model import ACTIVATIONS, MLP, kept_in_place, predict_logits
from mnist_ce.network.objective import Binary, Objective
from mnist_ce.runs.load_model import NetworkOptions, TrainedModel, load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import shipped_weights
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import CheckpointError, UsageError
from mnist_ce.system.notebook import MAX_IMAGES, Shown
from mnist_ce.system.text import certainty

logger = logging.getLogger(__name__)

# Below that accuracy other activations and scales are tried: mean and std of MNIST's pixels, of a
# half each, pixels from 0 to 255, and dark ink on white.
POOR_ACCURACY, MIN_OPTIONS_GAIN = 0.95, 0.02
INPUT_SCALES = ((0.0, 1.0), (0.1307, 0.3081), (0.5, 0.5), (0.0, 1 / 255), (1.0, -1.0))
MIN_CONVERSION_GAIN = 0.3  # `world` reads MNIST's 99.5 %, turned 12 %, inverted 6 %
NUM_TRIED, MIN_TRIED, EQUAL_ACCURACY = 500, 30, 0.015


@dataclass(frozen=True)
class SplitResult:
    """A network's results on labelled images, all on the CPU."""

    logits: Tensor  # float32 [n, outputs]
    labels: Tensor  # int64 [n]
    objective: Objective

    @cached_property
    def predictions(self) -> Tensor:  # int64 [n]
        return self.objective.predictions(self.logits)

    @cached_property
    def loss(self) -> float:
        """The mean of the losses of all examples, without label smoothing."""
        return self.objective.example_losses(self.logits, self.labels).double().mean().item()

    @cached_property
    def is_correct(self) -> Tensor:  # bool [n]
        return self.predictions == self.labels

    @property
    def num_correct(self) -> int:
        return int(self.is_correct.sum())

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples

    def negative_log_likelihood(self, temperature: float = 1.0) -> float:
        """Return the mean of -log p(label), in nats, of logits divided by the temperature."""
        logits = self.logits.double() / temperature
        return self.objective.example_losses(logits, self.labels).mean().item()

    def confidences(self, temperature: float = 1.0) -> tuple[metrics.Floats, metrics.Bools]:
        """Return the probability, float64 [n], and the correctness, bool [n], of predictions."""
        # float64: in float32 a confident network's probabilities all round to 1.
        probabilities = self.objective.probabilities(self.logits.double() / temperature)
        return probabilities.amax(dim=1).numpy(), self.is_correct.numpy()

    def calibration(self, temperature: float) -> metrics.CalibrationReport:
        predictions = self.confidences(temperature)
        return metrics.CalibrationReport(
            nll=self.negative_log_likelihood(temperature),
            ece=metrics.expected_calibration_error(*predictions),
            ece_interval=metrics.calibration_interval(*predictions),
            bins=metrics.reliability_bins(*predictions),
        )


def predict_split(
    model: nn.Module, images: Tensor, labels: Tensor, objective: Objective, **scale: float
) -> SplitResult:
    """Predict every image. `labels` are int64 [n]; for the other arguments see `predict_logits`."""
    return SplitResult(predict_logits(model, images, **scale), labels.cpu(), objective)


class Reading(NamedTuple):
    """The names of an image's class and of the predicted one, and how probable that is."""

    label: str
    prediction: str
    probability: float


@dataclass(frozen=True, repr=False)
class EvaluationReport(Shown):
    """A network's results on one split of one dataset."""

    trained: TrainedModel
    dataset: str
    split: str
    class_names: tuple[str, ...]  # of the dataset, by label
    result: SplitResult
    images: Tensor  # uint8 [n, 28, 28], on the CPU

    @cached_property
    def probabilities(self) -> Tensor:
        """The probabilities at the network's temperature, float32 [n, classes]."""
        return self.trained.objective.probabilities(self.result.logits / self.trained.temperature)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return metrics.wilson_interval(self.result.num_correct, self.result.num_examples)

    @cached_property
    def confusion(self) -> list[list[int]]:
        """The number of images by true class (row) and predicted class (column)."""
        num_classes = len(self.class_names)
        cells = self.result.labels * num_classes + self.result.predictions
        counts = torch.bincount(cells, minlength=num_classes**2)
        rows: list[list[int]] = counts.reshape(num_classes, num_classes).tolist()
        return rows

    @property
    def per_class(self) -> list[metrics.ClassReport]:
        return metrics.class_reports(self.confusion, self.class_names)

    @property
    def binary(self) -> metrics.BinaryReport | None:
        if not isinstance(self.trained.objective, Binary):
            return None
        return metrics.binary_report(self.result.logits[:, 0], self.result.labels, self.confusion)

    @cached_property
    def calibrations(self) -> dict[float, metrics.CalibrationReport]:
        """The calibration by temperature: at the network's, which `predict` uses, and at 1."""
        return {value: self.result.calibration(value) for value in (self.trained.temperature, 1.0)}

    def has_images_of(self, other: EvaluationReport) -> bool:
        """Whether another report is of the same images with the same labels."""
        mine, theirs = ((one.images, one.result.labels) for one in (self, other))
        return all(map(torch.equal, mine, theirs))

    def to_dict(self) -> dict[str, Any]:
        after, before = (asdict(self.calibrations[t]) for t in (self.trained.temperature, 1.0))
        calibration = {"temperature": self.trained.temperature, "num_bins": metrics.NUM_BINS}
        for key in ("nll", "ece", "ece_interval"):
            after[f"{key}_uncalibrated"] = before[key]
        content = self.summary() | {
            "total": self.result.num_examples,
            "per_class": [asdict(report) for report in self.per_class],
            "confusion_matrix": self.confusion,
            "calibration": calibration | after,
            "dataset": self.dataset,
            "split": self.split,
            "conversion": self.trained.conversion,
        }
        if (binary := self.binary) is not None:
            content["binary"] = asdict(binary)
        return content

    def headline(self) -> str:
        result = self.result
        return (
            f"{self.trained.label} on {self.dataset}, {self.split} split: {result.num_correct:,} "
            f"of {result.num_examples:,} correct ({result.accuracy:.2%}), loss {result.loss:.4f}"
        )

    def table(self) -> list[tuple[str, ...]]:
        rows = (
            (c.class_name, *(f"{x:.4f}" for x in (c.precision, c.recall, c.f1)), f"{c.count:,}")
            for c in self.per_class
        )
        return [("class", "precision", "recall", "F1", "images"), *rows]

    @cached_property
    def mistakes(self) -> list[int]:
        """The images that are predicted wrongly, the most confident mistake first."""
        (wrong,) = torch.nonzero(~self.result.is_correct, as_tuple=True)
        confidence = self.probabilities[wrong, self.result.predictions[wrong]]
        indices: list[int] = wrong[confidence.argsort(descending=True, stable=True)].tolist()
        return indices

    def reading(self, index: int) -> Reading:
        label, prediction = int(self.result.labels[index]), int(self.result.predictions[index])
        names, probability = self.class_names, float(self.probabilities[index, prediction])
        return Reading(names[label], names[prediction], probability)

    def shown_images(self) -> Iterator[tuple[NDArray[Any], str]]:
        return captioned([self], self.mistakes)

    def summary(self) -> dict[str, Any]:
        """Return the model, and how many images it gets right, as plain values."""
        return {
            "checkpoint": str(self.trained.path),
            "weights_sha256": self.trained.weights_sha256,
            "loss": self.result.loss,
            "correct": self.result.num_correct,
            "accuracy": self.result.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
        }


def captioned(
    reports: Sequence[EvaluationReport], indices: Sequence[int]
) -> Iterator[tuple[NDArray[Any], str]]:
    """Yield images with what they are and what each network reads, for a notebook."""
    for index in indices[:MAX_IMAGES]:
        readings = [report.reading(index) for report in reports]
        texts = [f"{one.prediction} ({certainty(one.probability)})" for one in readings]
        if len(reports) > 1:
            texts = [f"{chr(65 + number)} {text}" for number, text in enumerate(texts)]
        caption = f"#{index}: {readings[0].label}, predicted {', '.join(texts)}"
        yield reports[0].images[index].numpy(), caption


def evaluate(
    checkpoint: str | Path | TrainedModel | nn.Module | None = None,
    *,
    split: str = "test",
    dataset: str | None = None,
    data: object = None,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    device: str = "auto",
    held_out: bool | None = None,
    **network: Unpack[NetworkOptions],
) -> EvaluationReport:
    """Evaluate a network on the dataset it was trained on.

    Args:
        checkpoint: See `load_model`, as for `network`.
        split: `train`, `validation` or `test`.
        dataset: Another dataset than the run's own; without a record, MNIST is the default.
        data: Images and labels in place of a dataset: see `custom_dataset`. One set alone is the
            test split, whole.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        output: The folder of the runs.
        device: See `resolve_device`.
        held_out: Whether the test split is a fifth of a dataset that has no test images, or all of
            it. None: a fifth where the network was trained on the rest.
        network: How the weights of another program become a network. Where they do poorly without
            a run's record, others are tried, and a warning names those that do far better.

    A `CheckpointError` if the network cannot be loaded; a `DataError` if the data is missing or
    damaged; a `UsageError` if the device is missing, or split or dataset do not fit the network.
    """
    trained = load_model(checkpoint, output, **network)
    torch_device = resolve_device(device)
    splits = load_splits_of(
        trained,
        dataset=dataset,
        data=data,
        data_dir=data_dir,
        only_test=split == "test",
        held_out=held_out,
    )
    is_other = warn_of_convention(splits)
    with kept_in_place(trained.model):
        report = evaluate_split(trained, splits, split, torch_device)
        if not is_other and trained.record is None and report.result.accuracy < POOR_ACCURACY:
            _name_better_options(report, torch_device)
        return report


def warn_of_convention(splits: DataSplits) -> bool:
    """Warn if `world` reads arrays of digits far better turned, mirrored or inverted: then True."""
    own, test = re.fullmatch(OWN_DATASET, splits.dataset), splits.test
    is_array = own["kind"] != "folder" if own else splits.dataset == CUSTOM
    if not is_array or splits.class_names != DIGITS or len(test) < MIN_TRIED:
        return False
    stride, world = -(-len(test) // NUM_TRIED), load_model(shipped_weights("world"))
    images, labels = test.images[::stride], test.labels[::stride]
    tried = {
        names: predict_split(world.model, convert(images, names), labels, world.objective)
        for size in range(len(CONVERSIONS) + 1)
        for names in itertools.combinations(CONVERSIONS, size)
    }
    if (names := _better(tried, tried[()], MIN_CONVERSION_GAIN)) is None:
        return False
    mnist, prefix = (own and own["mnist"]) or "", "".join(f"{name}+" for name in names)
    undo = f"--dataset {mnist}{prefix}{splits.dataset.removeprefix(mnist)}" if own else "undo that"
    log_once(
        logging.WARNING,
        f"{splits.dataset}: the images are {', '.join(names)}, compared with MNIST's: the shipped "
        f"network reads {tried[()].accuracy:.0%} of {len(labels)} as they are, "
        f"{tried[names].accuracy:.0%} with that undone. A network trained on them cannot read "
        f"upright digits: {undo}",
    )
    return True


def _name_better_options(report: EvaluationReport, device: torch.device) -> None:
    """Warn if another activation or input scale does far better."""
    trained, stride = report.trained, -(-len(report.images) // NUM_TRIED)
    images, labels = report.images[::stride].to(device), report.result.labels[::stride]
    now = SplitResult(report.result.logits[::stride], labels, trained.objective)
    model: Any = copy.copy(trained.model)  # the same weights
    activations = ACTIVATIONS if isinstance(model, MLP) else [None]  # a module has its own
    tried = {}
    for model.activation, (mean, std) in itertools.product(activations, INPUT_SCALES):
        names = [f"--activation {model.activation}"] * (model.activation not in (None, "relu"))
        names += [f"--input-mean {mean:g} --input-std {std:.6g}"] * ((mean, std) != (0, 1))
        result = predict_split(model, images, labels, trained.objective, mean=mean, std=std)
        tried[tuple(names)] = result
    if (best := _better(tried, now, MIN_OPTIONS_GAIN)) is not None:
        logger.warning(
            f"{trained.path}: {now.num_correct} of {len(labels)} images are read correctly, but "
            f"{tried[best].num_correct} with {' '.join(best) or 'no options'}: evaluate it so (in "
            "Python: see load_model)"
        )


def _better(
    tried: Mapping[tuple[str, ...], SplitResult], now: SplitResult, min_gain: float
) -> tuple[str, ...] | None:
    """Return the fewest options that do about as well as any, if those do far better than now."""
    highest = max(result.accuracy for result in tried.values())
    near = [k for k, result in tried.items() if result.accuracy >= highest - EQUAL_ACCURACY]
    best = min(near, key=lambda names: (len(names), tried[names].loss))
    return best if tried[best].accuracy > now.accuracy + min_gain else None


def evaluate_split(
    trained: TrainedModel, splits: DataSplits, name: str, device: torch.device
) -> EvaluationReport:
    """Evaluate a network on one split of loaded data.

    A `UsageError` if there is no such split; a `CheckpointError` if the loss is not finite.
    """
    split = splits.split(name)
    model, images = trained.model.to(device), split.images.to(device)
    scale = {"mean": trained.input_mean, "std": trained.input_std}
    result = predict_split(model, images, split.labels, trained.objective, **scale)
    if not math.isfinite(result.loss):
        raise CheckpointError(f"{trained.path}: its logits are not finite, or too large for a loss")
    return EvaluationReport(trained, splits.dataset, name, splits.class_names, result, split.images)


def load_splits_of(
    trained: TrainedModel,
    *,
    dataset: str | None = None,
    data: object = None,
    data_dir: str | Path | None = None,
    only_test: bool = False,
    offline: bool = False,
    held_out: bool | None = None,
) -> DataSplits:
    """Load the data that a network was trained on, split as in training.

    With `only_test` nothing is done for the other splits, which may take a while. With `offline`
    nothing is downloaded. For `held_out` see `evaluate`. A `DataError` if the data is missing or
    damaged; a `UsageError` if its classes are not the network's.
    """
    record = trained.record or RunRecord()
    is_binary = isinstance(trained.objective, Binary)
    name = dataset or trained.dataset or "mnist"
    if data is None and name == CUSTOM:
        raise UsageError(f"{trained.label} was trained on data given from Python; give it: data=…")
    flags = {
        "data.dataset": name if data is None else None,
        "data.dir": data_dir and str(data_dir),
        "data.mirror": "file:///nowhere" if offline else None,
        "objective.kind": "binary" if is_binary else "multiclass",
    }
    config = resolve_config(record.flat_config, flags=flags)
    settings = config.data
    # It may lack a class.
    used = (*settings.classes, *[config.objective.positive] * is_binary)
    names, num_classes = () if used else trained.class_names, 1 + max(used, default=0)
    if data is not None:
        given = custom_dataset(data, names, num_classes=num_classes, is_test=True)
    else:
        mirror, folder = settings.mirror, Path(settings.dir)
        given = datasets.load_dataset(name, folder, mirror=mirror, class_names=names)
    # Its own data may have been moved.
    is_own = given.name == trained.dataset or given.digest == record.dataset_digest
    is_known = is_own or given.name == (trained.dataset or "").removeprefix("mnist+")
    if only_test and not (is_known if held_out is None else held_out):
        given = given.as_test()
    if not is_own:  # nothing is held out of others
        settings = settings.model_copy(update={"validation_size": 0, "num_synthetic": 0})
    splits = load_splits(settings, config.objective, config.train.seed, given, only_test=only_test)
    if len(splits.class_names) != len(trained.class_names):
        raise UsageError(
            f"{trained.path} has {len(trained.class_names)} classes, but {splits.dataset} has "
            f"{len(splits.class_names)}"
        )
    is_named = data is None and splits.dataset == trained.dataset
    if is_named and record.dataset_digest not in (None, splits.digest):
        logger.warning(
            f"{splits.dataset} is not what {trained.path} was trained on (another digest): its "
            "test images may be among those that the network was trained on"
        )
    return replace(splits, objective=trained.objective)
