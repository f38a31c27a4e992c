"""The two loops: train for one epoch, and evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ce.data.batches import Batches, scale_pixels
from mnist_ce.model import MLP
from mnist_ce.objective import Objective
from mnist_ce.steps.base import Step, Totals
from mnist_ce.steps.products import best_products

__all__ = ["Evaluation", "evaluate", "predict_logits", "train_one_epoch"]

EVALUATION_BATCH = 2_000


def train_one_epoch(
    step: Step,
    batches: Batches,
    epoch: int,
    learning_rate: Callable[[int], float],
    *,
    first_batch: int = 0,
    after_batch: Callable[[int], None] = lambda number: None,
) -> Totals:
    """Show every training image to the network once.

    Args:
        step: What one optimisation step does.
        batches: The training images.
        epoch: Counted from 1; with the seed it makes the order.
        learning_rate: The rate of a step, by its number since the run began.
        first_batch: Where to go on in an interrupted epoch.
        after_batch: Called with the number of batches done.

    Returns:
        The sums over the epoch's examples, taken as each batch was trained on.
    """
    for number, indices in enumerate(batches.epoch(epoch, first_batch), start=first_batch + 1):
        step(indices, learning_rate(step.num_steps))
        after_batch(number)
    return step.totals()


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
