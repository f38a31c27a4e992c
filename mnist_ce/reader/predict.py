"""Prediction: what a trained network sees in pictures, or that there is nothing to see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mnist_ce.evaluation.inference import predict_logits
from mnist_ce.network.objective import Binary
from mnist_ce.reader import Digit, Options, Picture, Prepared, Reading, Stages, Workers
from mnist_ce.reader.detector import demanded, load_detector
from mnist_ce.runs.load_model import TrainedModel, check_input_scale, load_model
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import UsageError

__all__ = ["Prediction", "predict", "predict_each"]

BATCH_SIZE = 256
SPLIT_MARGIN = 0.5  # how much surer, in nats, several digits must be than one
USUAL_WIDTH = 1.25  # of two digits, over their height; narrower ones must be surer still
SURENESS = 2.0  # weight of the network's opinion beside the ink's when readings compete


@dataclass(frozen=True)
class Prediction:
    """The answer about one digit, or about a picture that has none.

    Args:
        path: The picture; None where it came as an image or array.
        index: The digit's place in its picture, from the left, counted from 0.
        label: The class, or None where there is no answer.
        class_name: What the class means.
        probability: Of that class.
        top_k: The likeliest classes, each with label, class_name and probability.
        status: `ok`, `rejected` (there is no single digit to be seen) or `error`.
        reason: Why it was rejected or failed.
        glyph: What the network saw, uint8 [28, 28]; None where nothing was found.
        stages: The picture after each stage, if that was asked for.
    """

    path: str | None
    index: int
    status: str
    label: int | None = None
    class_name: str | None = None
    probability: float | None = None
    top_k: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    glyph: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    stages: Stages = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON holds: plain values, fractions."""
        return {
            "path": self.path,
            "index": self.index,
            "label": self.label,
            "class_name": self.class_name,
            "probability": self.probability,
            "top_k": self.top_k,
            "status": self.status,
            "reason": self.reason,
        }


def predict(
    inputs: Picture | Iterable[Picture],
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    **settings: Any,  # noqa: ANN401 - those of predict_each, by name
) -> list[Prediction]:
    """Answer for pictures: paths, bytes, Pillow images or uint8 arrays, one or many.

    Args:
        inputs: Each a path, the bytes of a file, a Pillow image, or uint8 [height, width] or
            [height, width, 3 or 4].
        checkpoint: See `load_model`.
        **settings: See `predict_each`.

    Returns:
        A record for every input, in order; several for a picture of several digits with `multi`.

    Raises:
        CheckpointError: If the network cannot be loaded.
        UsageError: If a setting makes no sense.
    """
    single = isinstance(inputs, (str, Path, bytes, Image.Image, np.ndarray))
    pictures: Iterable[Picture] = [inputs] if single else inputs  # type: ignore[list-item,assignment]
    return list(predict_each(pictures, checkpoint=checkpoint, **settings))


def predict_each(
    inputs: Iterable[Picture],
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    top_k: int = 3,
    multi: bool = False,
    min_confidence: float | None = None,
    input_mean: float = 0.0,
    input_std: float = 1.0,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    workers: Workers | None = None,
    keep_stages: bool = False,
) -> Iterator[Prediction]:
    """Answer for pictures one by one, in order and in bounded memory.

    Args:
        inputs: See `predict`.
        checkpoint: See `load_model`.
        output: The folder that holds the runs.
        top_k: How many of the likeliest classes each record lists.
        multi: Find and read every digit of a row, from left to right.
        min_confidence: Reject what the network holds less probable than this, in place of what does
            not look like a digit; None: the latter.
        input_mean: For networks trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.
        device: See `resolve_device`.
        batch_size: How many pictures wait for the network at a time.
        workers: Processes that read pictures; None: this one does.
        keep_stages: Keep the picture after each stage in the records.

    Yields:
        A record for every input; several for a picture of several digits with `multi`.

    Raises:
        CheckpointError: If the network cannot be loaded.
        UsageError: If a setting makes no sense.
    """
    if top_k < 1:
        raise UsageError(f"--top-k = {top_k}: must be at least 1")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise UsageError(f"--min-confidence = {min_confidence}: must be from 0 to 1")
    check_input_scale(input_mean, input_std)
    trained = checkpoint if isinstance(checkpoint, TrainedModel) else load_model(checkpoint, output)
    reader = Reader(trained, device, input_mean, input_std, top_k, multi, min_confidence)
    options = Options(crop=trained.reads_digits, multi=multi, keep_stages=keep_stages)
    names: list[str | None] = []

    def noting_names() -> Iterator[Picture]:
        for source in inputs:
            names.append(str(source) if isinstance(source, (str, Path)) else None)
            yield source

    prepared = (workers or Workers()).prepare_all(noting_names(), options)
    while batch := list(islice(prepared, batch_size)):
        yield from reader.read(names[: len(batch)], batch)
        del names[: len(batch)]


@dataclass
class Reader:
    """A network and how its answers are told."""

    trained: TrainedModel
    device: str
    input_mean: float
    input_std: float
    top_k: int
    multi: bool
    min_confidence: float | None

    def __post_init__(self) -> None:
        self.torch_device = resolve_device(self.device)
        self.model = self.trained.model.to(self.torch_device)
        threshold = self.trained.rejection_threshold
        self.threshold = load_detector().threshold if threshold is None else threshold

    def read(self, names: Sequence[str | None], batch: Sequence[Prepared]) -> Iterator[Prediction]:
        """Yield the records of some pictures."""
        asked = [
            digit
            for prepared in batch
            for reading in prepared.readings
            for whole in reading.digits
            for digit in (whole, *(part for split in whole.splits for part in split))
        ]
        answers = dict(zip(map(id, asked), self.ask(asked), strict=True))
        for name, prepared in zip(names, batch, strict=True):
            if prepared.error is not None:
                yield Prediction(name, 0, "error", reason=prepared.error)
                continue
            options = [self.understand(reading, answers) for reading in prepared.readings]
            if not options:
                yield Prediction(name, 0, "rejected", reason="no ink found", stages=prepared.stages)
                continue
            chosen = max(options, key=lambda option: option.plausibility)
            for index, answer in enumerate(chosen.answers):
                yield self.record(name, index, answer, chosen)

    def ask(self, digits: Sequence[Digit]) -> list[Answer]:
        """Ask the network, and the detector where classes are digits, about each glyph."""
        if not digits:
            return []
        glyphs = np.stack([digit.glyph for digit in digits])
        logits = predict_logits(
            self.model,
            torch.from_numpy(glyphs).to(self.torch_device),
            mean=self.input_mean,
            std=self.input_std,
        )
        if not torch.isfinite(logits).all():
            raise UsageError(
                "the network's logits are not finite: do --input-mean and --input-std fit it?"
            )
        scaled = logits.double() / self.trained.temperature
        probabilities = self.trained.objective.probabilities(scaled).numpy()
        scores = (
            load_detector().scores(glyphs) if self.trained.reads_digits else np.ones(len(glyphs))
        )
        return [
            Answer(glyph, row, float(score))
            for glyph, row, score in zip(glyphs, probabilities, scores, strict=True)
        ]

    def understand(self, reading: Reading, answers: dict[int, Answer]) -> Understood:
        """Settle which ink of a reading is one digit and which is several that touch."""
        chosen: list[Answer] = []
        num_found = reading.num_found
        for digit in reading.digits:
            whole = answers[id(digit)]
            splits = [[answers[id(part)] for part in split] for split in digit.splits]
            best = max(splits, key=sureness, default=None)
            top, left, bottom, right = digit.box
            narrow = max(0.0, USUAL_WIDTH - (right - left) / max(1, bottom - top))
            margin = SPLIT_MARGIN + 4 * narrow
            if best is None or sureness(best) < sureness([whole]) + margin:
                chosen.append(whole)
                continue
            num_found += len(best) - 1
            chosen.extend(best if self.multi else [whole])
        plausibility = math.log(reading.likeness) + SURENESS * sureness(chosen)
        return Understood(chosen, num_found, plausibility, reading.soundness, reading.stages)

    def record(
        self, name: str | None, index: int, answer: Answer, understood: Understood
    ) -> Prediction:
        """Return the record of one digit."""
        names = self.trained.class_names
        order = np.argsort(-answer.probabilities, kind="stable")
        # a network of one output says yes above 1/2, as its objective does
        binary = isinstance(self.trained.objective, Binary)
        label = int(answer.probabilities[1] > 0.5) if binary else int(order[0])
        best = float(answer.probabilities[label])
        reason = None
        if understood.num_found > 1 and not self.multi:
            reason = f"{understood.num_found} digits found: --multi reads them all"
        elif self.min_confidence is not None:
            if best < self.min_confidence:
                reason = f"probability {best:.3f} is below {self.min_confidence:g}"
        elif self.trained.reads_digits and answer.score < demanded(
            self.threshold, understood.soundness
        ):
            reason = "does not look like a digit"
        return Prediction(
            path=name,
            index=index,
            status="ok" if reason is None else "rejected",
            label=label,
            class_name=names[label],
            probability=best,
            top_k=[
                {
                    "label": int(k),
                    "class_name": names[k],
                    "probability": float(answer.probabilities[k]),
                }
                for k in order[: self.top_k]
            ],
            reason=reason,
            glyph=answer.glyph,
            stages=understood.stages if index == 0 else {},
        )


@dataclass(frozen=True)
class Answer:
    """What the networks say of one glyph: class probabilities, and the log-odds of a digit."""

    glyph: NDArray[np.uint8]
    probabilities: NDArray[np.float64]
    score: float


@dataclass(frozen=True)
class Understood:
    """A reading with its answers, and how plausible it is beside the picture's other readings."""

    answers: list[Answer]
    num_found: int
    plausibility: float
    soundness: float
    stages: Stages


def sureness(answers: Sequence[Answer]) -> float:
    """The mean log-probability that a glyph is a digit and the likeliest one."""
    return float(
        np.mean([math.log(a.probabilities.max()) - np.logaddexp(0, -a.score) for a in answers])
    )
