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
from itertools import islice
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
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.runs.load_model import TrainedModel, check_input_scale, load_model
from mnist_ce.runs.run_dir import shipped_weights
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import UsageError

DEFAULT_WEIGHTS = "world"  # reads photographs better than a run of the classic recipe
ImageLike: TypeAlias = ImageSource | BinaryIO | torch.Tensor
OTHER_PENALTY, SIGN_PENALTY = 3.0, 1.0  # nats, for ink that is taken for no digit, or for a sign
# Nats by which a probable digit's score may be below the threshold among accepted digits.
ROW_BONUS, MIN_ROW_PROBABILITY, MIN_ROW_LENGTH, MIN_ROW_QUALITY = 2.0, 0.9, 3, 0.6
MIN_LEGIBLE_PX, MIN_LEGIBLE_CONTRAST = 14, 0.12  # below them a rejection names the cause
USE_MULTI = ": use --multi"
NO_INK = "no ink found: the image is empty, or its contrast too low"
CONFIDENCE_WEIGHT = 2.0  # of the network's log-confidence beside the segmentation's log-score
JSON_FIELDS = (
    *("path", "index", "label", "class_name", "probability", "top_k", "status", "reason"),
    *("score", "threshold", "box", "line", "position", "text"),
)


@dataclass(frozen=True)
class PredictOptions:
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
        if self.batch_size < 1:
            raise UsageError(f"batch_size = {self.batch_size}: must be at least 1")
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
    score: float | None = None  # log-odds that it is a digit, or the probability (min_confidence)
    threshold: float | None = None  # a lower score is rejected
    box: tuple[int, int, int, int] | None = None  # x, y, width, height in pixels, upright image
    line: int | None = None  # the text line, from the top, counted from 0
    position: int | None = None  # the place in the line, from the left, counted from 0
    text: str | None = None  # the whole line; ? for what was not read
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)  # [28, 28]
    stages: Stages = field(default_factory=dict, repr=False, compare=False)

    @property
    def guess(self) -> str | None:
        """The most probable class of a rejected part; None for an image of several digits."""
        return None if (self.reason or "").endswith(USE_MULTI) else self.class_name

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
    settings = PredictOptions(top_k, multi, min_confidence, device, batch_size, keep_stages)
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
    settings: PredictOptions,
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
class ScoredDigit:
    """A digit with the network's class probabilities and the detector's log-odds."""

    digit: Digit
    probabilities: NDArray[np.float64]
    log_odds: float

    @property
    def log_confidence(self) -> float:
        """The log-probability that it is a digit, and the most probable one."""
        return float(np.log(self.probabilities.max()) - np.logaddexp(0, -self.log_odds))

    @property
    def plausibility(self) -> float:
        """How plausible it is as a part of its line, in nats: as a digit, or else as no digit."""
        if self.digit.mark is not None:
            return -SIGN_PENALTY
        return max(self.log_confidence, -OTHER_PENALTY) - self.digit.penalty


@dataclass(frozen=True)
class ResolvedHypothesis:
    """A hypothesis with one digit after another in each line, and how plausible it is."""

    hypothesis: Hypothesis
    lines: list[list[ScoredDigit]]
    num_found: int  # digits, where only one was wanted
    num_lines: int
    quality: float  # in [0, 1]: how much of the ink looks like writing
    is_writing: bool  # whether most of several parts are digits
    score: float


class Predictor:
    """A network, the detector, and the settings that make records of their outputs."""

    def __init__(self, trained: TrainedModel, settings: PredictOptions) -> None:
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
                yield Prediction(image.path, 0, "rejected", reason=NO_INK, stages=image.stages)
            else:
                yield from self.to_predictions(
                    image.path, max(resolved, key=lambda hypothesis: hypothesis.score)
                )

    def classify(self, images: Sequence[PreprocessedImage]) -> list[list[ResolvedHypothesis]]:
        """Return the hypotheses of each image, after one run of the models on all their digits."""
        digits = [
            digit
            for image in images
            for hypothesis in image.hypotheses
            for line in (*hypothesis.lines, *hypothesis.all_lines)
            for lattice in line
            for digit in lattice.digits.values()
        ]
        scored = iter(self.run_models(digits))
        return [[self.resolve(h, scored) for h in image.hypotheses] for image in images]

    def run_models(self, found: Sequence[Digit]) -> list[ScoredDigit]:
        """Run the network, and where classes are digits the detector, on all digits."""
        if not found:
            return []
        pixels = np.stack([digit.pixels for digit in found])  # [n, 28, 28]
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
        return list(map(ScoredDigit, found, probabilities, log_odds.tolist()))

    def resolve(self, hypothesis: Hypothesis, scored: Iterator[ScoredDigit]) -> ResolvedHypothesis:
        """Choose the most plausible digits of each lattice; `scored` yields them all in order."""
        found = [[resolve_lattice(x, scored) for x in line] for line in hypothesis.lines]
        row = [[resolve_lattice(x, scored) for x in line] for line in hypothesis.all_lines]
        lines = [[digit for path, _ in line for digit in path] for line in found]
        quality, is_writing, surplus = hypothesis.foreground_quality, False, 0
        if self.settings.multi:
            # A line of specks is no line, unless the image holds nothing else.
            written = [line for line in lines if any(d.digit.mark is None for d in line)]
            chosen, num_found, num_lines = written or lines, 0, 0
            parts = [d for line in lines for d in line if d.digit.mark is None]
            accepted = self._count(parts)
            surplus = 2 * accepted - len(parts)  # the more is read, and the less is not, the better
            if len(parts) > 1:  # among writing a digit may look odd, among specks it may not
                quality = accepted / len(parts)
                is_writing = len(parts) >= MIN_ROW_LENGTH and quality >= MIN_ROW_QUALITY
        else:  # the best candidate as one digit, and how many there are
            chosen = [[found[0][0][1]]]
            counts = [self._count([d for path, _ in line for d in path]) for line in row]
            num_found, num_lines = sum(counts), sum(count > 0 for count in counts)
            if num_found < 2 and len(lines[0]) > 1:
                num_found, num_lines = len(lines[0]), 1
        confidence = float(np.mean([d.log_confidence for line in chosen for d in line]))
        score = CONFIDENCE_WEIGHT * confidence + math.log(hypothesis.segmentation_score) + surplus
        return ResolvedHypothesis(
            hypothesis, chosen, num_found, num_lines, quality, is_writing, score
        )

    def _count(self, digits: list[ScoredDigit]) -> int:
        return sum(d.digit.mark is None and d.log_odds >= self.threshold for d in digits)

    def to_predictions(self, path: str | None, chosen: ResolvedHypothesis) -> Iterator[Prediction]:
        """Yield the records of the digits of an image."""
        index, stages = 0, chosen.hypothesis.stages
        if stages:
            rows = [np.hstack([d.digit.pixels for d in line]) for line in chosen.lines]
            width = max(row.shape[1] for row in rows)
            padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows]
            stages = stages | {"what the network reads": np.vstack(padded)}
        for number, line in enumerate(chosen.lines):
            records = []
            for position, scored in enumerate(line):
                record = self.to_prediction(scored, chosen)
                placed = replace(record, path=path, index=index, line=number, position=position)
                records.append(replace(placed, stages={} if index else stages))
                index += 1
            text = "".join(r.class_name or "?" if r.status == "ok" else "?" for r in records)
            yield from (replace(record, text=text) for record in records)

    def to_prediction(self, scored: ScoredDigit, chosen: ResolvedHypothesis) -> Prediction:
        """Return the record of one digit, without its place."""
        names, labels = self.trained.class_names, self.trained.labels
        probabilities = scored.probabilities
        order = np.argsort(-probabilities, kind="stable")
        # A network of one output predicts yes above 1/2, as its objective does.
        binary = isinstance(self.trained.objective, Binary)
        best = int(probabilities[1] > 0.5) if binary else int(order[0])
        top = tuple(
            ClassProbability(labels[k], names[k], float(probabilities[k]))
            for k in order[: self.settings.top_k]
        )
        limit, score, threshold = self.settings.min_confidence, float(probabilities[best]), None
        if limit is not None:
            threshold = limit
        elif self.trained.reads_digits:
            score = scored.log_odds
            threshold = adjusted_threshold(self.threshold, chosen.quality)
            if chosen.is_writing and probabilities[best] >= MIN_ROW_PROBABILITY:
                threshold -= ROW_BONUS
        reason = self._rejection(scored, chosen, score, threshold)
        box, scale = scored.digit.box, chosen.hypothesis.scale
        edges = [round(scale * edge) for edge in (box.left, box.top, box.right, box.bottom)]
        left, top_edge, right, bottom = edges
        return Prediction(
            None,
            0,
            "ok" if reason is None else "rejected",
            labels[best],
            names[best],
            float(probabilities[best]),
            top,
            reason,
            score,
            threshold,
            (left, top_edge, right - left, bottom - top_edge),
            pixels=scored.digit.pixels,
        )

    def _rejection(
        self,
        scored: ScoredDigit,
        chosen: ResolvedHypothesis,
        score: float,
        threshold: float | None,
    ) -> str | None:
        """Return why a digit is rejected and what may help, or None."""
        if chosen.num_found > 1:
            lines = f"{chosen.num_lines} line{'s' * (chosen.num_lines > 1)}"
            return f"{chosen.num_found} digits in {lines}{USE_MULTI}"
        if threshold is None:
            return None
        if self.settings.min_confidence is not None:
            too_low = score < threshold
            # Rounded down, so that it is below the threshold as printed, too.
            return (
                f"probability {int(score * 1000) / 1000:.3f} is below {threshold:g}"
                if too_low
                else None
            )
        hypothesis, digit = chosen.hypothesis, scored.digit
        if digit.mark is not None:
            return f"looks like {digit.mark}, not a digit"
        if score >= threshold:
            return None
        side = round(hypothesis.scale * digit.box.size)
        if side < MIN_LEGIBLE_PX:
            return f"the digit is {side} pixels high: photograph it closer"
        if hypothesis.contrast < MIN_LEGIBLE_CONTRAST:
            return "the ink hardly differs from the paper: use a darker pen or more light"
        if score >= self.threshold:
            return "its edges are soft, or much else is beside it: crop the image to the digit"
        return "looks like a letter, a sign or a scribble, not a digit"


def resolve_lattice(
    lattice: Lattice, scored: Iterator[ScoredDigit]
) -> tuple[list[ScoredDigit], ScoredDigit]:
    """Return the most plausible path through a lattice, and all of it as one digit.

    `scored` yields the lattice's digits in order. The plausibilities along a path add up.
    """
    digits = {place: next(scored) for place in lattice.digits}
    best: list[tuple[float, list[ScoredDigit]]] = [(0.0, [])]
    for stop in range(1, lattice.num_pieces + 1):
        paths = [
            (
                best[start][0] + digits[start, stop].plausibility,
                [*best[start][1], digits[start, stop]],
            )
            for start in range(stop)
            if (start, stop) in digits
        ]
        best.append(max(paths, key=lambda path: path[0]))
    return best[-1][1], digits[0, lattice.num_pieces]
