"""Objectives: logits and labels → loss, predictions, probabilities."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


class Objective(ABC):
    """A training loss and the reading of logits that belongs to it."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean training loss of a batch, float32 []."""

    def loss_and_gradient(self, logits: Tensor, labels: Tensor, gradient: Tensor) -> float:
        """Return the *sum* of the training losses; write its gradient by the logits.

        `logits` and `gradient` are float32 [batch, outputs], `labels` int64 [batch].
        """
        with torch.inference_mode(False), torch.enable_grad():  # inside `inference_mode` as well
            leaf = logits.clone().requires_grad_()
            loss = self.loss(leaf, labels.clone()) * len(labels)
        gradient.copy_(torch.autograd.grad(loss, leaf)[0])
        return loss.item()

    @abstractmethod
    def example_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, float32 [batch], without smoothing and weights."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Return the predicted labels, int64 [batch]."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, float32 [batch, classes]."""


@dataclass(frozen=True)
class Multiclass(Objective):
    """Cross-entropy of raw logits float32 [batch, classes] and labels int64 [batch].

    `label_smoothing`, the share of each target that is spread evenly over all classes (Szegedy et
    al. 2016), applies to `loss` only, so that losses on test data stay comparable.
    """

    label_smoothing: float = 0.0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def loss_and_gradient(self, logits: Tensor, labels: Tensor, gradient: Tensor) -> float:
        """Return the sum in closed form: autograd's overhead dominates for 10 logits.

        With p the softmax of the logits and t the target's share of each class, the loss is
        -Σ t·log p and its gradient p - t (Bishop 2006, section 4.3.4).
        """
        table = _smoothed_targets(logits.shape[1], self.label_smoothing)
        targets = table.index_select(0, labels)  # → [batch, classes]
        log_p = logits.log_softmax(dim=1)
        torch.exp(log_p, out=gradient).sub_(targets)
        if self.label_smoothing:
            return -torch.dot(log_p.view(-1), targets.view(-1)).item()
        return -log_p.gather(1, labels[:, None]).sum().item()  # 0 · log 0 is no part of it

    def example_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


@dataclass(frozen=True)
class Binary(Objective):
    """Binary cross-entropy of raw logits float32 [batch, 1] and labels 0 or 1, int64 [batch].

    The loss of label 1 counts `positive_weight` times (`pos_weight` of torch's
    `BCEWithLogitsLoss`); in `loss` only, so that losses on test data stay comparable.
    """

    positive_weight: float = 1.0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = self.example_losses(logits, labels)
        if self.positive_weight != 1:
            losses = losses * (1 + (self.positive_weight - 1) * labels)
        return losses.mean()

    def example_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")

    def predictions(self, logits: Tensor) -> Tensor:
        return (logits[:, 0] > 0).long()  # p > 1/2

    def probabilities(self, logits: Tensor) -> Tensor:
        yes = logits[:, 0].sigmoid()
        return torch.stack([1 - yes, yes], dim=1)


@functools.lru_cache(maxsize=8)
def _smoothed_targets(num_classes: int, smoothing: float) -> Tensor:
    """Return the targets of each label, float32 [classes, classes]."""
    return torch.eye(num_classes).mul_(1 - smoothing).add_(smoothing / num_classes)
