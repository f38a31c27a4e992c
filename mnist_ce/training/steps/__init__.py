"""Optimisation steps: the plain one, and the fast one that must equal it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from mnist_ce.config import Config
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import unwrapped
from mnist_ce.network.objective import Objective
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.system.errors import TrainingError

Tensors = dict[str, Tensor]  # by the parameters' names
OptimizerFactory: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class NonFiniteLossError(TrainingError):
    """The loss at a step, counted from 0 since the run began, is NaN or infinite."""

    def __init__(self, step: int, loss: float = float("nan")) -> None:
        self.step, self.loss = step, loss


@dataclass(eq=False)
class Step(ABC):
    """One optimisation step: gather a batch, forward, loss, backward, update.

    The model's parameters are trained in place; the loader's images are on its device. The config
    gives momentum, weight decay, the average's decay and the number of shards, but each step gets
    its learning rate. SGD's whole state is the momentum.
    """

    kind: ClassVar[str]  # its name in the config

    model: nn.Module
    loader: DeviceLoader
    objective: Objective
    config: Config
    make_optimizer: OptimizerFactory | None = None  # of the plain step; None: the config's

    def __post_init__(self) -> None:
        self.highest_rate = self.config.optimizer.learning_rate
        self.num_steps = 0  # since the run began
        self.sums = MetricSums()  # over the examples since the caller last set it
        # Threads that compute the step.
        self.num_workers = torch.get_num_threads() if self.loader.device.type == "cpu" else 1
        named = unwrapped(self.model).named_parameters(remove_duplicate=False)  # as in state_dict
        self.parameters: Tensors = {name: parameter.detach() for name, parameter in named}
        self.momentum: Tensors = {}
        if self.config.optimizer.name == "sgd" and self.make_optimizer is None:
            self.momentum = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        self.average: Tensors = {}
        if self.config.average.decay:
            self.average = {n: p.clone() for n, p in self.parameters.items()}

    @abstractmethod
    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on the images at these indices, int64 [batch].

        A NonFiniteLossError if the loss is not finite; the weights are then as before the step.
        """

    @property
    def buffers(self) -> Tensors:
        """Running means, for example."""
        state = unwrapped(self.model).state_dict()
        return {name: tensor for name, tensor in state.items() if name not in self.parameters}

    @property
    def average_weight(self) -> float:
        """The weight of the new parameters in the moving average, at the current step.

        The decay is min(decay, (1 + step) / (10 + step)), so that the average soon forgets the
        initial weights (the rule of TensorFlow's ExponentialMovingAverage).
        """
        return 1 - min(self.config.average.decay, (1 + self.num_steps) / (10 + self.num_steps))

    def eval_weights(self) -> Tensors:
        """Return a copy on the CPU of the weights to evaluate: the averages if there are any."""
        return _copied({**(self.average or self.parameters), **self.buffers})

    def state(self) -> dict[str, Any]:
        """Return all that exact continuation needs, as tensors on the CPU and plain values."""
        return {
            "num_steps": self.num_steps,
            "weights": _copied(self.parameters),
            "momentum": _copied(self.momentum if self.num_steps else {}),
            "average": _copied(self.average),
            "buffers": _copied(self.buffers),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, of any kind of step."""
        self.num_steps = state["num_steps"]
        _copy_into(self.parameters, state["weights"])
        if state["momentum"]:
            _copy_into(self.momentum, state["momentum"])
        _copy_into(self.average, state["average"])
        _copy_into(self.buffers, state.get("buffers", {}))

    def _count(self, loss_sum: float, num_correct: int, num_examples: int) -> None:
        self.sums += MetricSums(loss_sum, num_correct, num_examples)
        self.num_steps += 1


def _copy_into(targets: Tensors, sources: Tensors) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])


def _copied(tensors: Tensors) -> Tensors:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
