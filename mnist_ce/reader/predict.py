"""Predictions for images: segment → hypotheses → classify → choose.

`segment` and `hypotheses` (segmentation.py) turn an image into candidates for its digits, 28×28
each; they may run in a pool of processes, which do not import torch. `Predictor` runs the network
and the detector on all candidates of a batch of images, and chooses the hypothesis that
segmentation and network together find the most plausible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_ce.network.inference import predict_logits
from mnist_ce.network.model import kept_in_place
from mnist_ce.network.objective import Binary
from mnist_ce.reader.detector import adjusted_threshold, load_detector
from mnist_ce.reader.image_io import ImageSource, each_image
from mnist_ce.reader.pool import PreprocessedImage, PreprocessOptions, PreprocessPool
from mnist_ce.reader.segmentation import Hypothesis, Stages
from mnist_ce.runs.load_model import TrainedModel, check_input_scale, load_model
from mnist_ce.runs.run_dir import shipped_weights
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import UsageError

SPLIT_MARGIN_NATS = 0.5  # how much more confident several digits must be than one
TYPICAL_PAIR_ASPECT = 1.25  # width over height of two digits; narrower ones need a larger margin
DEFAULT_WEIGHTS = "world"  # reads photographs better than a run of the classic recipe
CONFIDENCE_WEIGHT = 2.0  # of the network's log-confidence beside the segmentation's log-score
ImageLike: TypeAlias = ImageSource | BinaryIO | torch.Tensor
JSON_FIELDS = ("path", "index", "label", "class_name", "probability", "top_k", "status", "reason")


@dataclass(frozen=True)
class PredictionSettings:
    """How images are classified and which predictions are rejected."""

    top_k: int = 3  # how many of the most probable classes each record lists
    multi: bool = False  # find and classify every digit of a row, from left to right
    min_confidence: float | None = None  # rejects by probability instead of by likeness to a digit
    device: str = "cpu"  # see `resolve_device`
    batch_size: int = 256  # how many images are classified at a time
    keep_stages: bool = False  # keep the image after each stage of preprocessing in the records

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"--top-k = {self.top_k}: must be at least 1")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise UsageError(f"--min-confidence = {self.min_confidence}: must be from 0 to 1")


@dataclass(frozen=True)
class ClassProbability:
    """A class and how probable it is."""

    label: int
    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for one digit, or the record of an image without one.

    `pixels` is the network's input. It and the label are None where nothing was found.
    """

    path: str | None  # None where the image came as bytes, image or array
    index: int  # the digit's place in its image, from the left, counted from 0
    status: str  # ok, rejected (no single digit is visible) or error
    label: int | None = None
    class_name: str | None = None
    probability: float | None = None  # of the label, as a fraction
    top_k: tuple[ClassProbability, ...] = ()  # the most probable classes, in order
    reason: str | None = None  # why it was rejected or failed
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)  # [28, 28]
    stages: Stages = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the record in JSON: plain values, fractions."""
        row = {name: getattr(self, name) for name in JSON_FIELDS}
        return row | {"top_k": [asdict(item) for item in self.top_k]}


def predict(
    images: ImageLike | Iterable[ImageLike],
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    model: nn.Module | None = None,
    output: str | Path = "checkpoints",
    input_mean: float = 0.0,
    input_std: float = 1.0,
    top_k: int = 3,
    multi: bool = False,
    min_confidence: float | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    keep_stages: bool = False,
) -> list[Prediction]:
    """Return a record for each image, in order, or for each of its digits with `multi`.

    Args:
        images: An image or an iterable of images: a path, the bytes of a file, a binary file
            object, a Pillow image, or an array or tensor [height, width] or [height, width, 1, 3
            or 4] of pixels 0 to 255, or of bool or floats in [0, 1]. An array [n, 28, 28] is n
            images.
        checkpoint: See `load_model`, but None is the shipped `world`; a `TrainedModel` keeps its
            own input scale unless another is given.
        model: A module of your own, with the weights of `checkpoint` or its own: see `load_model`.
        output: The folder of the runs.
        input_mean: See `load_model`.
        input_std: See `load_model`.
        top_k: How many of the most probable classes each record lists.
        multi: Read every digit of a row, from left to right.
        min_confidence: Rejects by probability instead of by likeness to a digit.
        device: See `resolve_device`.
        batch_size: How many images are classified at a time.
        keep_stages: Keep the image after each stage of preprocessing in the records.

    Raises:
        CheckpointError: If the network cannot be loaded.
        TypeError: If an image is of another type. One that cannot be read gets a record.
        UsageError: If a setting makes no sense.
    """
    settings = PredictionSettings(top_k, multi, min_confidence, device, batch_size, keep_stages)
    if not isinstance(checkpoint, TrainedModel):
        if checkpoint is None and model is None:
            checkpoint = shipped_weights(DEFAULT_WEIGHTS)
        scale = {"input_mean": input_mean, "input_std": input_std}
        trained = load_model(checkpoint, output, model=model, **scale)
    elif model is not None:
        raise UsageError("a TrainedModel has its network; leave model out")
    elif (input_mean, input_std) == (0.0, 1.0):
        trained = checkpoint
    else:
        check_input_scale(input_mean, input_std)
        trained = replace(checkpoint, input_mean=input_mean, input_std=input_std)
    with kept_in_place(trained.model):
        return list(predict_each(each_image(images), trained, settings))


def predict_each(
    images: Iterable[ImageSource],
    trained: TrainedModel,
    settings: PredictionSettings,
    pool: PreprocessPool | None = None,
) -> Iterator[Prediction]:
    """Yield the records of `predict` one by one, in bounded memory; without a pool in this process.

    Raises `UsageError` if the device is absent or the network's logits are not finite.
    """
    predictor = Predictor(trained, settings)
    options = PreprocessOptions(trained.reads_digits, settings.multi, settings.keep_stages)
    preprocessed = (pool or PreprocessPool()).preprocess_all(images, options)
    while batch := list(islice(preprocessed, settings.batch_size)):
        yield from predictor.predict_batch(batch)


@dataclass(frozen=True)
class DigitScores:
    """The network's class probabilities for one 28×28 image, and the detector's log-odds."""

    pixels: NDArray[np.uint8]
    probabilities: NDArray[np.float64]
    log_odds: float


@dataclass(frozen=True)
class ResolvedHypothesis:
    """A hypothesis in which each digit is either whole or split, and how plausible it is."""

    hypothesis: Hypothesis
    digits: list[DigitScores]
    num_found: int
    score: float


class Predictor:
    """A network, the detector, and the settings that make records of their outputs."""

    def __init__(self, trained: TrainedModel, settings: PredictionSettings) -> None:
        self.trained, self.settings = trained, settings
        self.device = resolve_device(settings.device)
        self.model = trained.model.to(self.device)
        threshold = trained.rejection_threshold
        self.threshold = load_detector().threshold if threshold is None else threshold

    def predict_batch(self, images: Sequence[PreprocessedImage]) -> Iterator[Prediction]:
        """Yield the records of a batch of images."""
        for image, resolved in zip(images, self.classify(images), strict=True):
            if image.error is not None:
                yield Prediction(image.path, 0, "error", reason=image.error)
            elif not resolved:
                reason = "no ink found"
                yield Prediction(image.path, 0, "rejected", reason=reason, stages=image.stages)
            else:
                chosen = max(resolved, key=lambda hypothesis: hypothesis.score)
                for index in range(len(chosen.digits)):
                    yield self.to_prediction(image.path, index, chosen)

    def classify(self, images: Sequence[PreprocessedImage]) -> list[list[ResolvedHypothesis]]:
        """Return the hypotheses of each image, after one run of the models on all their digits."""
        digits = [
            part.pixels
            for image in images
            for hypothesis in image.hypotheses
            for digit in hypothesis.digits
            for part in (digit, *chain.from_iterable(digit.splits))
        ]
        scores = iter(self.run_models(digits))
        return [[self.resolve_hypothesis(h, scores) for h in i.hypotheses] for i in images]

    def run_models(self, images: Sequence[NDArray[np.uint8]]) -> list[DigitScores]:
        """Run the network, and where classes are digits the detector, on 28×28 images."""
        if not images:
            return []
        pixels = np.stack(images)  # [n, 28, 28]
        inputs, trained = torch.from_numpy(pixels).to(self.device), self.trained
        mean, std = trained.input_mean, trained.input_std
        logits = predict_logits(self.model, inputs, mean=mean, std=std)  # [n, outputs]
        if not torch.isfinite(logits).all():
            raise UsageError(
                "the network's logits are not finite: do --input-mean and --input-std fit it?"
            )
        scaled = logits.double() / trained.temperature
        probabilities = trained.objective.probabilities(scaled).numpy()  # [n, classes]
        digits = trained.reads_digits
        log_odds = load_detector().scores(pixels) if digits else np.ones(len(pixels))
        return list(map(DigitScores, pixels, probabilities, log_odds.tolist()))

    def resolve_hypothesis(
        self, hypothesis: Hypothesis, scores: Iterator[DigitScores]
    ) -> ResolvedHypothesis:
        """Decide which digits are several that touch; `scores` yields digit, pieces, digit, …."""
        chosen: list[DigitScores] = []
        num_found = hypothesis.num_found
        for digit in hypothesis.digits:
            whole = next(scores)
            splits = [[next(scores) for _ in split] for split in digit.splits]
            best = max(splits, key=mean_log_confidence, default=None)
            # A narrow shape is rarely two digits.
            narrow = max(0.0, TYPICAL_PAIR_ASPECT - digit.box.width / max(1, digit.box.height))
            margin = SPLIT_MARGIN_NATS + 4 * narrow
            if best is None or mean_log_confidence(best) < mean_log_confidence([whole]) + margin:
                chosen.append(whole)
                continue
            num_found += len(best) - 1
            chosen.extend(best if self.settings.multi else [whole])
        confidence = CONFIDENCE_WEIGHT * mean_log_confidence(chosen)
        score = confidence + math.log(hypothesis.segmentation_score)
        return ResolvedHypothesis(hypothesis, chosen, num_found, score)

    def to_prediction(self, path: str | None, index: int, chosen: ResolvedHypothesis) -> Prediction:
        """Return the record of one digit."""
        scores, names = chosen.digits[index], self.trained.class_names
        labels, probabilities = self.trained.labels, scores.probabilities
        order = np.argsort(-probabilities, kind="stable")
        # A network of one output predicts yes above 1/2, as its objective does.
        binary = isinstance(self.trained.objective, Binary)
        best = int(probabilities[1] > 0.5) if binary else int(order[0])
        probability = float(probabilities[best])
        reason = self._rejection(scores, probability, chosen)
        top = tuple(
            ClassProbability(labels[k], names[k], float(probabilities[k]))
            for k in order[: self.settings.top_k]
        )
        status = "ok" if reason is None else "rejected"
        pixels, stages = scores.pixels, chosen.hypothesis.stages if index == 0 else {}
        return Prediction(
            path, index, status, labels[best], names[best], probability, top, reason, pixels, stages
        )

    def _rejection(
        self, scores: DigitScores, probability: float, chosen: ResolvedHypothesis
    ) -> str | None:
        limit = self.settings.min_confidence
        if chosen.num_found > 1 and not self.settings.multi:
            return f"{chosen.num_found} digits found: --multi reads them all"
        if limit is not None:
            too_low = probability < limit
            return f"probability {probability:.3f} is below {limit:g}" if too_low else None
        required = adjusted_threshold(self.threshold, chosen.hypothesis.foreground_quality)
        unlike = self.trained.reads_digits and scores.log_odds < required
        return "does not look like a digit" if unlike else None


def mean_log_confidence(digits: Sequence[DigitScores]) -> float:
    """Return the mean log-probability that each is a digit, and the most probable one."""
    return float(
        np.mean([math.log(d.probabilities.max()) - np.logaddexp(0, -d.log_odds) for d in digits])
    )
