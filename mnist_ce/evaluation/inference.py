"""Evaluation on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mnist_ce.network.inference import predict_logits
from mnist_ce.network.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """A network's results on labelled images, all on the CPU."""

    logits: Tensor  # float32 [n, outputs]
    labels: Tensor  # int64 [n]
    predictions: Tensor  # int64 [n]
    loss: float  # the mean per example

    @property
    def num_correct(self) -> int:
        """How many predictions are right."""
        return int((self.predictions == self.labels).sum())

    @property
    def num_examples(self) -> int:
        """How many images there are."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The fraction of right predictions."""
        return self.num_correct / self.num_examples


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Evaluation:
    """Predict every image and take the mean of the losses, without label smoothing.

    `labels` are int64 [n], on any device; for the other arguments see `predict_logits`.
    """
    logits = predict_logits(model, images, mean=mean, std=std)
    labels = labels.cpu()
    loss = objective.example_losses(logits, labels).double().mean().item()
    return Evaluation(logits, labels, objective.predictions(logits), loss)
