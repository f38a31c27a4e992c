"""The reference step: autograd and `torch.optim`. Every faster step must equal it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from mnist_ce.data.augment import generator_seed
from mnist_ce.network.model import MLP, unwrapped
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.steps.base import NonFiniteLossError, Step

OTHER_STREAM = 1 << 63  # no seed of a run is as large


class PlainStep(Step):
    """Gather, forward, loss, backward, update: a line each."""

    def _setup(self) -> None:
        self.optimizer = self._new_optimizer(list(self.network.parameters()))
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.make_optimizer is not None:
            self.highest_rate = rates[0]
        if not rates[0] > 0:
            raise UsageError(f"the optimizer's learning rate is {rates[0]}; it must be above 0")
        self.relative_rates = [rate / rates[0] for rate in rates]

    def _new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        if self.make_optimizer is not None:
            optimizer = self.make_optimizer(parameters)
            if not isinstance(optimizer, torch.optim.Optimizer):
                found = type(optimizer).__name__
                raise TypeError(f"optimizer must return a torch.optim.Optimizer, not a {found}")
            return optimizer
        if config.name == "sgd":
            sgd = torch.optim.SGD(
                parameters,
                lr=1.0,  # set at each step
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
            )
            for name, parameter in unwrapped(self.network).named_parameters():
                sgd.state[parameter]["momentum_buffer"] = self.momentum[name]
            return sgd
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=1.0, weight_decay=config.weight_decay)

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on one batch."""
        images, labels = self.loader.get_batch(indices, self.num_steps)  # [batch, 784], [batch]
        if not isinstance(self.network, MLP):
            # The masks of a dropout are then a function of (seed, step), as distortions are.
            torch.manual_seed(generator_seed(self.loader.seed + OTHER_STREAM, self.num_steps))
        logits = self.network(images)  # → [batch, outputs]
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
        for group, share in zip(self.optimizer.param_groups, self.relative_rates, strict=True):
            group["lr"] = learning_rate * share
        self.optimizer.step()
        for name, average in self.average.items():
            average.lerp_(self.parameters[name], self.average_weight)

    def state(self) -> dict[str, Any]:
        """Return the state, with the optimizer's where it has more than SGD's momentum."""
        state = super().state()
        if not self.momentum:
            state["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; a RunError if it has no state of such an optimizer."""
        super().load_state(state)
        if not self.momentum:
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                reason = f"its optimizer's state: {one_line(error)}"
                raise RunError(f"resume.pt does not belong to this run: {reason}") from None
