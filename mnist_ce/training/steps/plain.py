"""One optimisation step in the plain way: autograd and `torch.optim.SGD`.

This is the reference that every faster step must equal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.objective import Objective
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.training.steps.base import (
    NonFiniteLossError,
    OptimizerSettings,
    assign,
    average_decay,
    copied,
    named_weights,
)

__all__ = ["PlainStep"]


class PlainStep:
    """Gather, forward, loss, backward, update: a line each.

    Args:
        model: The network; its parameters are trained in place.
        batches: Where the images come from.
        objective: What is minimised.
        settings: The optimizer's.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: DeviceLoader,
        objective: Objective,
        settings: OptimizerSettings,
    ) -> None:
        self.model = model
        self.batches = batches
        self.objective = objective
        self.settings = settings
        self.num_steps = 0
        self.sums = MetricSums()
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=1.0,  # given at each step
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        self.average = copied_here(model) if settings.average_decay else None

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """See `Step.__call__`."""
        images, labels = self.batches.gather(indices, self.num_steps)  # [batch, 784], [batch]
        logits = self.model(images)  # → [batch, classes]
        loss = self.objective.loss(logits, labels)  # → []
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise NonFiniteLossError(self.num_steps, loss_value)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self._update_average()

        self.sums.loss_sum += loss_value * len(labels)
        self.sums.num_correct += int((self.objective.predictions(logits) == labels).sum())
        self.sums.num_examples += len(labels)
        self.num_steps += 1

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        share = 1 - average_decay(self.settings.average_decay, self.num_steps)
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, share)

    def totals(self) -> MetricSums:
        """See `Step.totals`."""
        return MetricSums(self.sums.loss_sum, self.sums.num_correct, self.sums.num_examples)

    def start_epoch(self, totals: MetricSums | None = None) -> None:
        """See `Step.start_epoch`."""
        self.sums = totals or MetricSums()

    def weights(self) -> dict[str, Tensor]:
        """See `Step.weights`."""
        return named_weights(self.model) if self.average is None else self.average

    def state(self) -> dict[str, Any]:
        """See `Step.state`."""
        buffers = {
            name: self.optimizer.state[parameter].get("momentum_buffer")
            for name, parameter in self.model.named_parameters()
        }
        return {
            "num_steps": self.num_steps,
            "weights": copied(named_weights(self.model)),
            "momentum": copied({name: b for name, b in buffers.items() if b is not None}),
            "average": copied(self.average or {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Step.load_state`."""
        self.num_steps = state["num_steps"]
        assign(named_weights(self.model), state["weights"])
        for name, parameter in self.model.named_parameters():
            if name in state["momentum"]:
                buffer = state["momentum"][name].to(parameter.device, copy=True)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if self.average is not None:
            assign(self.average, state["average"])


def copied_here(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters on their own device."""
    return {name: tensor.clone() for name, tensor in named_weights(model).items()}
