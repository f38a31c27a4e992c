"""What every kind of optimisation step has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mnist_ce.runs.train_state import MetricSums
from mnist_ce.system.errors import TrainingError

__all__ = ["NonFiniteLossError", "OptimizerSettings", "Step", "average_decay"]


class NonFiniteLossError(TrainingError):
    """The loss of a batch was NaN or infinite; the update did not take effect.

    Args:
        step: The number of the step since the run began, from 0.
        loss: The loss, where it is known.
    """

    def __init__(self, step: int, loss: float = float("nan")) -> None:
        super().__init__(f"the loss is {loss} at step {step}")
        self.step = step
        self.loss = loss


@dataclass(frozen=True)
class OptimizerSettings:
    """Stochastic gradient descent as `torch.optim.SGD` does it, with averaged weights.

    Args:
        momentum: The share of the last update that is kept.
        nesterov: Nesterov's momentum.
        weight_decay: The L2 penalty's factor, on all parameters.
        average_decay: The decay of the moving average of the weights; 0: none.
    """

    momentum: float = 0.5
    nesterov: bool = False
    weight_decay: float = 0.0
    average_decay: float = 0.0


class Step(Protocol):
    """One optimisation step: gather a batch, forward, loss, backward, update."""

    num_steps: int
    """Steps done since the run began."""

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on the images at these indices, int64 [batch].

        Raises:
            NonFiniteLossError: If the loss is not finite; the weights are as before the step.
        """

    def totals(self) -> MetricSums:
        """Return the sums since `start_epoch`; waits for the device."""

    def start_epoch(self, totals: MetricSums | None = None) -> None:
        """Begin the sums of an epoch anew, or from those of an interrupted one."""

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to use: the averaged ones where averaging is on."""

    def state(self) -> dict[str, Any]:
        """Return all that continuing exactly needs, as tensors and plain values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""


def average_decay(decay: float, step: int) -> float:
    """Return the decay of the moving average at a step, counted from 0.

    The average starts fast, as min(decay, (1 + step) / (10 + step)), so that it does not
    remember the initial weights (the rule of TensorFlow's ExponentialMovingAverage).
    """
    return min(decay, (1 + step) / (10 + step))


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name, detached, sharing their storage."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU that no later step changes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def assign(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> None:
    """Copy tensors into others of the same names, in place."""
    for name, target in targets.items():
        target.copy_(sources[name])
