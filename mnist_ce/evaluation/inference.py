"""Inference and evaluation on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ce.data.loader import scale_pixels
from mnist_ce.network.linear_ops import best_products
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Objective

__all__ = ["Evaluation", "evaluate", "predict_logits"]

EVALUATION_BATCH = 2_000


@dataclass(frozen=True)
class Evaluation:
    """What a network says of labelled images, and how wrong it is.

    Args:
        logits: float32 [n, classes], on the CPU.
        labels: int64 [n], on the CPU.
        predictions: int64 [n], on the CPU.
        loss: The mean loss per example.
    """

    logits: Tensor
    labels: Tensor
    predictions: Tensor
    loss: float

    @property
    def num_correct(self) -> int:
        """How many answers are right."""
        return int((self.predictions == self.labels).sum())

    @property
    def num_examples(self) -> int:
        """How many images there are."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The fraction of right answers."""
        return self.num_correct / self.num_examples


@torch.inference_mode()
def predict_logits(
    model: MLP,
    images: Tensor,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """Return the logits of any number of images, in large batches.

    Args:
        model: The network.
        images: uint8 [n, 28, 28], on the network's device.
        mean: What the network's input is shifted by: (pixel/255 - mean) / std.
        std: What it is divided by.

    Returns:
        float32 [n, classes], on the CPU.
    """
    forward = _forward_on_cpu if images.device.type == "cpu" else MLP.__call__
    logits = []
    for batch in torch.split(images, EVALUATION_BATCH):
        inputs = scale_pixels(batch)  # → [batch, 784]
        if (mean, std) != (0.0, 1.0):
            inputs = (inputs - mean) / std
        logits.append(forward(model, inputs))
    return torch.cat(logits).cpu()


def _forward_on_cpu(model: MLP, inputs: Tensor) -> Tensor:
    """Do what `MLP.forward` does with the faster products of the fast step."""
    products = best_products()
    *hidden, last = model.layers
    for layer in hidden:
        inputs = products.linear(inputs, layer.weight, layer.bias).relu_()
    logits: Tensor = last(inputs)
    return logits


def evaluate(
    model: MLP,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Evaluation:
    """Ask the network about every image and add up the losses.

    Args:
        model: The network.
        images: uint8 [n, 28, 28], on the network's device.
        labels: int64 [n].
        objective: How logits are read; its loss is taken without label smoothing.
        mean: See `predict_logits`.
        std: See `predict_logits`.
    """
    logits = predict_logits(model, images, mean=mean, std=std)
    labels = labels.cpu()
    losses = objective.example_losses(logits, labels)
    return Evaluation(
        logits=logits,
        labels=labels,
        predictions=objective.predictions(logits),
        loss=losses.double().mean().item(),
    )
