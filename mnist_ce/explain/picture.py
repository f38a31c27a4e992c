"""Explanation of a picture: the loss of what the network says of it, and which pixels said it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ce.explain.loss_table import Explanation
from mnist_ce.explain.numbers import explain_binary, explain_logits
from mnist_ce.network.objective import Binary
from mnist_ce.reader.image_io import ImageSource
from mnist_ce.reader.predict import predict
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.system.errors import CheckpointError, ImageError, UsageError

__all__ = ["PictureExplanation", "attribution", "explain_picture"]

YES_NO = {"no": 0, "yes": 1}


@dataclass(frozen=True)
class PictureExplanation:
    """What a network says of one picture, and why.

    Args:
        trained: The network.
        path: The picture's path; None where it came otherwise.
        pixels: What the network saw, uint8 [28, 28].
        numbers: The arithmetic of its loss, with one row.
        training_loss: The same loss as training computes it, in float32.
        attributions: What each pixel did for a class, float32 [28, 28] by class index: for the
            answer and for the target.
        notes: What is out of the ordinary, in sentences.
    """

    trained: TrainedModel
    path: str | None
    pixels: NDArray[np.uint8]
    numbers: Explanation
    training_loss: float
    attributions: dict[int, NDArray[np.float32]]
    notes: tuple[str, ...]

    @property
    def answer(self) -> int:
        """The index of the class that the network answers."""
        return self.numbers.rows[0].prediction

    @property
    def target(self) -> int:
        """The index of the class that the loss is taken for."""
        return self.numbers.rows[0].target

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: those of `Explanation.to_dict`, and those of the picture."""
        names = self.trained.class_names
        return {
            "path": self.path,
            "checkpoint": str(self.trained.path),
            "label": self.answer,
            "class_name": names[self.answer],
            "probability": float(self.numbers.rows[0].probabilities[self.answer]),
            "training_loss": self.training_loss,
            **self.numbers.to_dict(),
            "notes": [*self.notes, *self.numbers.notes],
            "pixels": self.pixels.tolist(),
            "gradient_times_input": {
                names[label]: values.tolist() for label, values in self.attributions.items()
            },
        }


def explain_picture(
    picture: ImageSource,
    target: str | int | None = None,
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> PictureExplanation:
    """Explain what a network says of a picture.

    Args:
        picture: See `open_image`; it is read as `predict` reads it.
        target: The name of the right class; for a yes/no network `yes` or `no` too; None: what
            the network answers.
        checkpoint: See `load_model`.
        output: The folder that holds the runs.
        input_mean: For networks trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.

    Raises:
        CheckpointError: If the network cannot be loaded or gives no finite logits.
        ImageError: If the picture cannot be read or shows nothing.
        UsageError: If the target is not one of the network's classes.
    """
    trained = checkpoint if isinstance(checkpoint, TrainedModel) else load_model(checkpoint, output)
    label = None if target is None else _label_of(str(target), trained)
    path = str(picture) if isinstance(picture, (str, Path)) else None
    scale = (input_mean, input_std)
    pixels, notes = _read(picture, path or "the picture", trained, scale)
    logits = _network(trained, torch.tensor(pixels / np.float32(255)), scale).detach()  # [outputs]
    if not logits.isfinite().all():
        raise CheckpointError(f"{trained.path} gives logits that are not finite for this picture")
    answer = int(trained.objective.predictions(logits[None]))
    if label is None:
        label = answer
        notes.append("No --target was given: the loss is taken for the network's own answer.")
    if trained.temperature != 1:
        notes.append(
            f"predict divides the logits by {trained.temperature:.3g} before softmax, so that its "
            "probabilities are as often right as they say; the loss is that of the raw logits."
        )
    values = logits.double().numpy()
    if isinstance(trained.objective, Binary):
        numbers = explain_binary(values, [label], class_names=trained.class_names)
    else:
        numbers = explain_logits(values[None], [label], class_names=trained.class_names)
    return PictureExplanation(
        trained=trained,
        path=path,
        pixels=pixels,
        numbers=numbers,
        training_loss=trained.objective.example_losses(logits[None], torch.tensor([label])).item(),
        attributions={
            index: attribution(trained, pixels, index, scale)
            for index in dict.fromkeys((answer, label))
        },
        notes=tuple(notes),
    )


def attribution(
    trained: TrainedModel,
    pixels: NDArray[np.uint8],
    label: int,
    scale: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.float32]:
    """Return gradient × input: how each pixel's ink moved the network towards a class.

    The gradient is that of the class's log-odds against all others, log p - log(1 - p), which for
    logits is z_y - log Σ_{j≠y} exp(z_j): unlike a single logit it compares the classes, and unlike
    a probability it does not go flat where the network is sure. The method is Shrikumar et al.'s
    (2016), *Not just a black box: learning important features through propagating activation
    differences*.

    Args:
        trained: The network.
        pixels: uint8 [28, 28].
        label: The index of the class.
        scale: The mean and std of `explain_picture`.

    Returns:
        float32 [28, 28]: positive where ink speaks for the class; 0 where there is none.
    """
    ink = torch.tensor(pixels / np.float32(255)).requires_grad_()  # [28, 28]
    logits = _network(trained, ink, scale).double()  # [outputs]
    if len(logits) == 1:
        log_odds = logits[0] if label == 1 else -logits[0]
    else:
        others = torch.cat([logits[:label], logits[label + 1 :]])
        log_odds = logits[label] - others.logsumexp(dim=0)
    (gradient,) = torch.autograd.grad(log_odds, ink)
    product: NDArray[np.float32] = (gradient * ink).detach().numpy()
    return product


def _network(trained: TrainedModel, ink: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    logits: torch.Tensor = trained.model(((ink - scale[0]) / scale[1])[None])[0]
    return logits


def _read(
    picture: ImageSource, name: str, trained: TrainedModel, scale: tuple[float, float]
) -> tuple[NDArray[np.uint8], list[str]]:
    """Read a picture as `predict` does, which asks the network where there are several readings."""
    record = predict([picture], checkpoint=trained, input_mean=scale[0], input_std=scale[1])[0]
    if record.status == "error":
        raise ImageError(str(record.reason))
    if record.pixels is None:
        raise ImageError(f"{name} has nothing to explain: {record.reason}")
    notes = [] if record.reason is None else [f"predict rejects this picture: {record.reason}."]
    return record.pixels, notes


def _label_of(target: str, trained: TrainedModel) -> int:
    """Return the index of a class named by the user: `7`, `Sneaker`, `yes`."""
    names = trained.class_names
    wanted = target.strip().casefold()
    known = {name.casefold(): label for label, name in enumerate(names)}
    if isinstance(trained.objective, Binary):
        known = YES_NO | known
    if not any(name.isdecimal() for name in names):  # a number cannot be mistaken for a name
        known |= {str(label): label for label in range(len(names))}
    if wanted not in known:
        raise UsageError(f"target '{target}' is not one of {', '.join(known)}")
    return known[wanted]
