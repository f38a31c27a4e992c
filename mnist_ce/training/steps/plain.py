"""The reference step: autograd and `torch.optim`. The fast step must equal it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnist_ce.data.augment import generator_seed
from mnist_ce.network.model import MLP, unwrapped
from mnist_ce.system.distributed import all_reduce, num_processes, rank
from mnist_ce.system.errors import UsageError
from mnist_ce.training.steps import NonFiniteLossError, Step

OTHER_STREAM = 1 << 63  # no seed of a run is as large


class PlainStep(Step):
    """Gather, forward, loss, backward, update: a line each.

    Of several processes each takes its shard of the batch that a single one would take, and all
    have the same weights and metrics after the step.
    """

    kind = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_processes = num_processes()
        self.network: nn.Module = self.model
        if self.num_processes > 1:
            self.network = DistributedDataParallel(self.model)
        self.optimizer = self._new_optimizer(list(self.model.parameters()))
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.make_optimizer is not None:
            self.highest_rate = rates[0]
        if not rates[0] > 0:
            raise UsageError(f"the optimizer's learning rate is {rates[0]}; it must be above 0")
        self.relative_rates = [rate / rates[0] for rate in rates]

    def _new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        config, name = self.config.optimizer, type(unwrapped(self.model)).__name__
        if not any(parameter.requires_grad for parameter in parameters):
            raise UsageError(f"{name} has no weights to train: requires_grad is False for each")
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm1d)]
        if norms and 1 in self.loader.sizes:
            raise UsageError(f"{name} has BatchNorm1d, which needs two images: set --batch-size 2")
        if self.make_optimizer is not None:
            optimizer = self.make_optimizer(parameters)
            if not isinstance(optimizer, torch.optim.Optimizer):
                wrong = type(optimizer).__name__
                raise TypeError(f"optimizer must return a torch.optim.Optimizer, not a {wrong}")
            try:
                copy.deepcopy(optimizer).step()  # without gradients it changes nothing
            except Exception as error:
                if "closure" in str(error):
                    wrong = type(optimizer).__name__
                    raise UsageError(f"{wrong} needs a closure, which no step gives it") from None
            return optimizer
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": partial(torch.optim.SGD, momentum=config.momentum, nesterov=config.nesterov),
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        optimizer = kinds[config.name](parameters, lr=1.0, weight_decay=config.weight_decay)
        for name, parameter in unwrapped(self.model).named_parameters():
            if self.momentum:  # else Adam's
                optimizer.state[parameter]["momentum_buffer"] = self.momentum[name]
        return optimizer

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        # Distortions are drawn for the whole batch, so that its shards make no difference.
        distortion = self.loader.draw_distortion(len(indices), self.num_steps)
        images, labels = self.loader.gather(indices, distortion)  # → [batch, 784], [batch]
        images = images.tensor_split(self.num_processes)[rank()]  # → [shard, 784], may be empty
        labels = labels.tensor_split(self.num_processes)[rank()]  # → [shard]
        if not isinstance(self.model, MLP):
            # The masks of a dropout are then a function of (seed, step), as distortions are.
            torch.manual_seed(generator_seed(self.loader.seed + OTHER_STREAM, self.num_steps))
        logits = self.network(images)  # → [shard, outputs]
        # The mean over no images is undefined; this is 0 and has gradients of 0.
        loss = self.objective.loss(logits, labels) if len(labels) else logits.sum()  # → []
        self.optimizer.zero_grad()
        # `DistributedDataParallel` takes the mean of the processes' gradients. The mean over the
        # batch is Σ (shard/batch) · (mean over the shard); of a single process the factor is 1.
        (loss * (len(labels) / len(indices) * self.num_processes)).backward()
        correct = (self.objective.predictions(logits) == labels).sum()
        # Before the update, which no process may make if the loss is not finite in any.
        sums = [loss.item() * len(labels), correct.item()]
        loss_sum, num_correct = all_reduce(sums, "SUM")
        self._update(loss_sum / len(indices), learning_rate)
        self._count(loss_sum, int(num_correct), len(indices))

    def _update(self, loss: float, learning_rate: float) -> None:
        """Update weights and average from the gradients, unless the loss is not finite."""
        if not math.isfinite(loss):
            raise NonFiniteLossError(self.num_steps, loss)
        for group, relative_rate in zip(
            self.optimizer.param_groups, self.relative_rates, strict=True
        ):
            group["lr"] = learning_rate * relative_rate
        self.optimizer.step()
        for name, average in self.average.items():
            average.lerp_(self.parameters[name], self.average_weight)

    def state(self) -> dict[str, Any]:
        state = super().state()
        if not self.momentum:  # an optimizer with more than SGD's momentum
            state["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if not self.momentum:
            self.optimizer.load_state_dict(state["optimizer"])
