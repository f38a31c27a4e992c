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

from mnist_ce.device import resolve_device
from mnist_ce.errors import UsageError
from mnist_ce.loop import predict_logits
from mnist_ce.objective import Binary
from mnist_ce.preprocessing import Digit, Options, Picture, Prepared, Reading, Stages, Workers
from mnist_ce.trained import TrainedModel, load_model

__all__ = ["Prediction", "predict", "predict_each"]

BATCH_SIZE = 256
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
        min_confidence: Reject what the network holds less probable than this; None: the default.
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
    if not input_std > 0:
        raise UsageError(f"--input-std = {input_std}: must be above 0")
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

    def read(self, names: Sequence[str | None], batch: Sequence[Prepared]) -> Iterator[Prediction]:
        """Yield the records of some pictures."""
        readings = [reading for prepared in batch for reading in prepared.readings]
        answers = iter(self.probabilities([d for reading in readings for d in reading.digits]))
        for name, prepared in zip(names, batch, strict=True):
            options = [
                (reading, [next(answers) for _ in reading.digits]) for reading in prepared.readings
            ]
            if prepared.error is not None:
                yield Prediction(name, 0, "error", reason=prepared.error)
            elif not options:
                yield Prediction(name, 0, "rejected", reason="no ink found")
            else:
                reading, chosen = max(options, key=lambda option: plausibility(*option))
                for index, (digit, answer) in enumerate(zip(reading.digits, chosen, strict=True)):
                    yield self.record(name, index, digit, answer, reading)

    def probabilities(self, digits: Sequence[Digit]) -> NDArray[np.float64]:
        """Return float64 [digits, classes]."""
        if not digits:
            return np.zeros((0, len(self.trained.class_names)))
        images = torch.from_numpy(np.stack([digit.glyph for digit in digits]))
        logits = predict_logits(
            self.model, images.to(self.torch_device), mean=self.input_mean, std=self.input_std
        )
        scaled = logits.double() / self.trained.temperature
        return self.trained.objective.probabilities(scaled).numpy()

    def record(
        self,
        name: str | None,
        index: int,
        digit: Digit,
        answer: NDArray[np.float64],
        reading: Reading,
    ) -> Prediction:
        """Return the record of one digit."""
        names = self.trained.class_names
        order = np.argsort(-answer, kind="stable")
        # a network of one output says yes above 1/2, as its objective does
        label = (
            int(answer[1] > 0.5) if isinstance(self.trained.objective, Binary) else int(order[0])
        )
        best = float(answer[label])
        reason = None
        if reading.num_found > 1 and not self.multi:
            reason = f"{reading.num_found} digits found: use --multi to read them all"
        elif self.min_confidence is not None and best < self.min_confidence:
            reason = f"probability {best:.3f} is below {self.min_confidence:g}"
        return Prediction(
            path=name,
            index=index,
            status="ok" if reason is None else "rejected",
            label=label,
            class_name=names[label],
            probability=best,
            top_k=[
                {"label": int(k), "class_name": names[k], "probability": float(answer[k])}
                for k in order[: self.top_k]
            ],
            reason=reason,
            glyph=digit.glyph,
            stages=reading.stages if index == 0 else {},
        )


def plausibility(reading: Reading, answers: Sequence[NDArray[np.float64]]) -> float:
    """How likely a reading is, by its ink and by how sure the network is of its digits."""
    sure = float(np.mean([math.log(answer.max()) for answer in answers]))
    return math.log(reading.likeness) + SURENESS * sure
