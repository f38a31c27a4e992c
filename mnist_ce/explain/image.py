"""The loss of a network's output for an image, and the attribution of each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ce.explain.loss_table import LossTable, loss_table
from mnist_ce.network.objective import Binary
from mnist_ce.prediction.predict import Prediction, predict
from mnist_ce.reader.image_io import ImageSource
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.system.errors import CheckpointError, ImageError, UsageError


@dataclass(frozen=True)
class ImageExplanation:
    """The loss and the attributions of one image."""

    trained: TrainedModel
    path: str | None  # None for an image in memory
    pixels: NDArray[np.uint8]  # the network's input, [28, 28]
    table: LossTable  # of one row
    training_loss: float  # the same loss as training computes it, in float32
    attributions: dict[int, NDArray[np.float32]]  # [28, 28] by class: the prediction, the target
    notes: list[str]

    @property
    def prediction(self) -> int:
        """The index of the predicted class."""
        return int(self.table.predictions[0])

    @property
    def target(self) -> int:
        """The index of the class whose loss is computed."""
        return int(self.table.targets[0])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: those of `LossTable.to_dict` and those of the image."""
        names = self.trained.class_names
        return {
            "path": self.path,
            "checkpoint": str(self.trained.path),
            "label": self.trained.labels[self.prediction],
            "class_name": names[self.prediction],
            "probability": float(self.table.probabilities[0, self.prediction]),
            "training_loss": self.training_loss,
            **self.table.to_dict(),
            "notes": [*self.notes, *self.table.notes],
            "pixels": self.pixels.tolist(),
            "gradient_times_input": {names[k]: a.tolist() for k, a in self.attributions.items()},
        }


def explain_image(
    image: ImageSource,
    target: str | int | None = None,
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> ImageExplanation:
    """Compute the loss of a network's output for an image, and the attribution of each pixel.

    The image is read as by `predict`. The target is the name of the right class, for a yes/no
    network `yes` or `no` too; None: the predicted class. For the network see `load_model`; a
    `TrainedModel` has its own input scale.

    Raises:
        CheckpointError: If the network cannot be loaded or its logits are not finite.
        ImageError: If the image cannot be read or is empty.
        UsageError: If the target is not one of the network's classes.
    """
    trained = checkpoint
    if not isinstance(trained, TrainedModel):
        trained = load_model(trained, output, input_mean=input_mean, input_std=input_std)
    if target is not None:  # a wrong one is reported before the image is read
        _find_class(str(target), trained)
    return explain_record(trained, predict([image], checkpoint=trained)[0], target)


def explain_record(
    trained: TrainedModel, record: Prediction, target: str | int | None = None
) -> ImageExplanation:
    """Explain a network's output for the digit of a record; see `explain_image`."""
    label = None if target is None else _find_class(str(target), trained)
    if record.status == "error":
        raise ImageError(str(record.reason))
    if record.pixels is None:
        raise ImageError(f"{record.path or 'the image'} cannot be explained: {record.reason}")
    pixels = record.pixels
    notes = [] if record.reason is None else [f"predict rejects this image: {record.reason}."]
    logits = _logits(trained, torch.tensor(pixels / np.float32(255))).detach()  # [1, outputs]
    if not logits.isfinite().all():
        raise CheckpointError(f"{trained.path} gives logits that are not finite for this image")
    prediction = int(trained.objective.predictions(logits))
    if label is None:
        label = prediction
        notes.append("No --target was given: the loss is that of the predicted class.")
    if trained.temperature != 1:
        notes.append(
            f"predict divides the logits by {trained.temperature:.3g} before softmax to calibrate "
            "its probabilities; the loss is that of the raw logits."
        )
    classes = (prediction, label)
    kind = "binary" if isinstance(trained.objective, Binary) else "logits"
    return ImageExplanation(
        trained,
        record.path,
        pixels,
        table=loss_table(kind, logits.double().numpy(), [label], class_names=trained.class_names),
        training_loss=trained.objective.example_losses(logits, torch.tensor([label])).item(),
        attributions={k: attribution(trained, pixels, k) for k in dict.fromkeys(classes)},
        notes=notes,
    )


def attribution(
    trained: TrainedModel, pixels: NDArray[np.uint8], label: int
) -> NDArray[np.float32]:
    """Return gradient × input, [28, 28]: the contribution of each pixel to a class's log-odds.

    The log-odds of the class against all others, log p - log(1 - p), are z_y - log Σ_{j≠y} exp(z_j)
    for logits z. Unlike a single logit they compare the classes, and unlike a probability their
    gradient does not vanish where the network is certain. The method is Shrikumar et al.'s (2016),
    *Not just a black box: learning important features through propagating activation differences*.
    It is positive where ink is evidence for the class, and 0 where there is no ink.
    """
    ink = torch.tensor(pixels / np.float32(255)).requires_grad_()  # [28, 28]
    logits = _logits(trained, ink)[0].double()  # [outputs]
    if len(logits) == 1:
        log_odds = logits[0] if label == 1 else -logits[0]
    else:
        others = torch.cat([logits[:label], logits[label + 1 :]])
        log_odds = logits[label] - others.logsumexp(dim=0)
    (gradient,) = torch.autograd.grad(log_odds, ink)
    return np.asarray((gradient * ink).detach())


def _logits(trained: TrainedModel, ink: torch.Tensor) -> torch.Tensor:
    inputs = (ink - trained.input_mean) / trained.input_std
    logits: torch.Tensor = trained.model(inputs[None])  # [28, 28] → [1, outputs]
    return logits


def _find_class(target: str, trained: TrainedModel) -> int:
    """Return the index of a class given by name or number: `7`, `Sneaker`, `yes`."""
    names = trained.class_names
    known = {name.casefold(): label for label, name in enumerate(names)}
    if isinstance(trained.objective, Binary):
        known = {"no": 0, "yes": 1} | known
    if not any(name.isdecimal() for name in names):  # a number cannot be mistaken for a name
        known |= {str(label): label for label in range(len(names))}
    wanted = target.strip().casefold()
    if wanted not in known:
        raise UsageError(f"target '{target}' is not one of {', '.join(known)}")
    return known[wanted]
