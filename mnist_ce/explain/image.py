"""The loss of a network's output for an image, and the attribution of each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_ce.explain.loss import explain_loss, to_json
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Binary
from mnist_ce.prediction.predict import Prediction, predict
from mnist_ce.reader.image_io import ImageSource
from mnist_ce.runs.load_model import NetworkOptions, TrainedModel, load_model
from mnist_ce.system.errors import CheckpointError, ImageError, UsageError
from mnist_ce.system.text import sanitize


@dataclass(frozen=True)
class ImageExplanation:
    """The loss and the attributions of one image."""

    trained: TrainedModel
    path: str | None  # None for an image in memory
    pixels: NDArray[np.uint8]  # the network's input, [28, 28]
    loss: dict[str, Any]  # of one row: see `explain_loss`
    training_loss: float  # the same loss as training computes it, in float32
    attributions: dict[int, NDArray[np.float32]]  # [28, 28] by class: the prediction, the target
    activations: list[NDArray[np.float32]]  # of each layer of an MLP; the last ones are the logits

    @property
    def prediction(self) -> int:
        return int(self.loss["rows"][0]["prediction"])

    @property
    def target(self) -> int:
        return int(self.loss["rows"][0]["target"])

    def to_dict(self) -> dict[str, Any]:
        names = self.trained.class_names
        return {
            "path": self.path,
            "checkpoint": sanitize(str(self.trained.path)),
            "label": self.trained.labels[self.prediction],
            "class_name": names[self.prediction],
            "probability": self.loss["rows"][0]["probabilities"][self.prediction],
            "training_loss": self.training_loss,
            **to_json(self.loss),
            "pixels": self.pixels.tolist(),
            "gradient_times_input": {names[k]: a.tolist() for k, a in self.attributions.items()},
        }


def explain_image(
    image: ImageSource,
    target: str | int | None = None,
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    **network: Unpack[NetworkOptions],
) -> ImageExplanation:
    """Compute the loss of a network's output for an image, which is read as by `predict`.

    The target is the name of the right class, or `yes` or `no`; None: the predicted class. For the
    network see `load_model`.

    Raises:
        CheckpointError: If the network cannot be loaded or its logits are not finite.
        ImageError: If the image cannot be read or is empty.
        UsageError: If the target is not one of the network's classes.
    """
    trained = load_model(checkpoint, output, **network)
    if target is not None:  # a wrong one is reported before the image is read
        _find_class(str(target), trained)
    records = predict([image], checkpoint=trained, data_dir=data_dir)
    return explain_record(trained, records[0], target)


def explain_record(
    trained: TrainedModel, record: Prediction, target: str | int | None = None
) -> ImageExplanation:
    if target is None and record.truth in trained.class_names:
        target = record.truth
    label = None if target is None else _find_class(str(target), trained)
    if record.status == "error":
        raise ImageError(str(record.reason))
    if record.pixels is None:
        raise ImageError(f"{record.path or 'the image'} cannot be explained: {record.reason}")
    pixels = record.pixels
    notes = [] if record.reason is None else [f"predict rejects this image: {record.reason}."]
    notes += [f"This is page {record.page} of the image."] if record.page else []
    brightness = torch.tensor(pixels / np.float32(255)).requires_grad_()  # [28, 28]
    inputs = (brightness - trained.input_mean) / trained.input_std
    network, batch = trained.model, inputs.flatten()[None]  # [1, 784]
    layers = network.activations(batch) if isinstance(network, MLP) else [network(batch)]
    logits = layers[-1]  # [1, outputs]
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
    kind = "binary" if isinstance(trained.objective, Binary) else "logits"
    values = logits.detach()
    loss = explain_loss(kind, values.double().numpy(), [label], class_names=trained.class_names)
    return ImageExplanation(
        trained,
        record.path,
        pixels,
        loss={**loss, "notes": notes + loss["notes"]},
        training_loss=trained.objective.example_losses(values, torch.tensor([label])).item(),
        attributions={k: _attribution(logits, brightness, k) for k in {prediction: 0, label: 0}},
        activations=[layer[0].detach().numpy() for layer in layers],
    )


def _attribution(logits: Tensor, brightness: Tensor, label: int) -> NDArray[np.float32]:
    """Return gradient × input, [28, 28]: the contribution of each pixel to a class's log-odds.

    log p - log(1 - p) is z_y - log Σ_{j≠y} exp(z_j) for logits z. Unlike a single logit it compares
    the classes, and unlike that of a probability its gradient does not vanish where the network is
    certain. The method is Shrikumar et al.'s (2016), *Not just a black box: learning important
    features through propagating activation differences*.
    """
    values = logits[0].double()  # [outputs]
    if len(values) == 1:
        log_odds = values[0] if label == 1 else -values[0]
    else:
        others = torch.cat([values[:label], values[label + 1 :]])
        log_odds = values[label] - others.logsumexp(dim=0)
    (gradient,) = torch.autograd.grad(log_odds, brightness, retain_graph=True)
    return np.asarray((gradient * brightness).detach())


def _find_class(target: str, trained: TrainedModel) -> int:
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
