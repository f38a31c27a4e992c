"""The reference step: autograd and `torch.optim.SGD`. Every faster step must equal it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mnist_ce.training.steps.base import NonFiniteLossError, Step


class PlainStep(Step):
    """Gather, forward, loss, backward, update: a line each."""

    def _setup(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=1.0,  # set at each step
            momentum=self.config.momentum,
            nesterov=self.config.nesterov,
            weight_decay=self.config.weight_decay,
        )
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = self.momentum[name]

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on one batch."""
        images, labels = self.loader.get_batch(indices, self.num_steps)  # [batch, 784], [batch]
        logits = self.model(images)  # → [batch, outputs]
        loss = self.objective.loss(logits, labels)  # → []
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss = loss.item()
        self._update(mean_loss, learning_rate)
        num_correct = int((self.objective.predictions(logits) == labels).sum())
        self._count(mean_loss * len(labels), num_correct, len(labels))

    def _update(self, loss: float, learning_rate: float) -> None:
        """Update weights and average from the gradients, unless the loss is not finite."""
        if not math.isfinite(loss):
            raise NonFiniteLossError(self.num_steps, loss)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        for name, average in self.average.items():
            average.lerp_(self.parameters[name], self.average_weight)
