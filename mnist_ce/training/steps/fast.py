"""One optimisation step on the CPU, near the cost of its matrix products.

It computes what the plain step computes, with less around it:

- Each layer is updated by torch's fused kernel, one pass over its weights, gradient and momentum
  while the gradient is still in the cache; nothing is zeroed, collected or copied.
- All weights lie in one flat buffer, so that averaging them is one pass too.
- oneDNN does the products, where torch has it.
- The objective gives its gradient by the logits, so that any will do; the layers' gradients are
  written out: D is the gradient of the loss by a layer's output, A the layer's input,

      dL/dW = Dᵀ·A,    dL/db = Σ D over the batch,    dL/dA = D·W, zero where A is zero (ReLU).
- All runs in inference mode, so that no operation asks whether autograd watches it.
- Right answers are counted when somebody asks, from the logits kept since the epoch began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.linear_ops import best_products
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Objective
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.training.steps.base import (
    NonFiniteLossError,
    OptimizerSettings,
    assign,
    average_decay,
    copied,
)

__all__ = ["FastStep"]

ALIGNMENT = 16  # floats: a cache line, so that every matrix starts on one

_sgd = torch._fused_sgd_  # what torch.optim.SGD(fused=True) calls
_relu_backward = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class LayerViews:
    """One layer's part of the flat buffers: views, whose storage is never replaced."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor  # [outputs]
    weight_momentum: Tensor  # [outputs, inputs]
    bias_momentum: Tensor  # [outputs]


class FastStep:
    """See the module's text; arguments as for `PlainStep`.

    The model's parameters become views of one flat buffer and are updated in place.
    """

    def __init__(
        self, model: MLP, batches: DeviceLoader, objective: Objective, settings: OptimizerSettings
    ) -> None:
        self.model = model
        self.batches = batches
        self.objective = objective
        self.settings = settings
        self.num_steps = 0
        self._flatten()
        self.average = self.flat.clone() if settings.average_decay else None
        self.products = best_products()
        self.logits = torch.empty(len(batches.labels), model.sizes[-1])
        self.labels: list[Tensor] = []  # of the batches whose right answers are not yet counted
        self.sums = MetricSums()
        self.num_seen = 0  # images since the epoch began

    def _flatten(self) -> None:
        """Move the parameters into one buffer, each layer's weight and bias side by side."""
        places, end = [], 0
        for layer in self.model.layers:
            places.append(end)
            size = layer.weight.numel() + layer.bias.numel()
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.flat, self.momentum = torch.zeros(end), torch.zeros(end)
        self.layers = []
        for layer, start in zip(self.model.layers, places, strict=True):
            middle = start + layer.weight.numel()
            stop = middle + layer.bias.numel()
            shape = layer.weight.shape
            views = LayerViews(
                weight=self.flat[start:middle].view(shape),
                bias=self.flat[middle:stop],
                weight_momentum=self.momentum[start:middle].view(shape),
                bias_momentum=self.momentum[middle:stop],
            )
            views.weight.copy_(layer.weight.detach())
            views.bias.copy_(layer.bias.detach())
            layer.weight.data, layer.bias.data = views.weight, views.bias
            self.layers.append(views)

    @torch.inference_mode()
    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """See `Step.__call__`."""
        size = len(indices)
        images, labels = self.batches.gather(indices, self.num_steps)
        logits = self.logits[self.num_seen : self.num_seen + size]
        inputs = self._forward(images, logits)
        mean_loss, gradient = self.objective.loss_and_gradient(logits, labels)
        loss = mean_loss.item()
        if not math.isfinite(loss):
            raise NonFiniteLossError(self.num_steps, loss)
        self._backward_and_update(inputs, gradient, learning_rate)
        if self.average is not None:
            decay = average_decay(self.settings.average_decay, self.num_steps)
            self.average.lerp_(self.flat, 1 - decay)

        self.labels.append(labels)
        self.num_seen += size
        self.sums.loss_sum += loss * size
        self.sums.num_examples += size
        self.num_steps += 1

    def _forward(self, images: Tensor, logits: Tensor) -> list[Tensor]:
        """Write the logits; return the input of each layer, [batch, inputs of the layer]."""
        inputs = [images]
        for layer in self.layers[:-1]:
            inputs.append(self.products.linear(inputs[-1], layer.weight, layer.bias).relu_())
        last = self.layers[-1]
        torch.addmm(last.bias, inputs[-1], last.weight.t(), out=logits)
        return inputs

    def _backward_and_update(self, inputs: list[Tensor], gradient: Tensor, rate: float) -> None:
        """From the last layer to the first: pass the gradient down, then update the layer."""
        settings, ones = self.settings, torch.ones(len(gradient))
        for number in range(len(self.layers) - 1, -1, -1):
            layer, layer_input = self.layers[number], inputs[number]
            above = gradient  # of the loss by this layer's output, [batch, outputs]
            if number:
                gradient = self.products.input_gradient(above, layer.weight)
                _relu_backward(gradient, layer_input, 0.0, grad_input=gradient)
            _sgd(
                [layer.weight, layer.bias],
                [self.products.weight_gradient(above, layer_input), torch.mv(above.t(), ones)],
                [layer.weight_momentum, layer.bias_momentum] if settings.momentum else [],
                lr=rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=settings.nesterov,
                dampening=0.0,
                maximize=False,
                is_first_step=False,
            )

    def totals(self) -> MetricSums:
        """See `Step.totals`."""
        if self.labels:
            labels = torch.cat(self.labels)
            logits = self.logits[self.num_seen - len(labels) : self.num_seen]
            self.sums.num_correct += int((self.objective.predictions(logits) == labels).sum())
            self.labels.clear()
        return MetricSums(self.sums.loss_sum, self.sums.num_correct, self.sums.num_examples)

    def start_epoch(self, totals: MetricSums | None = None) -> None:
        """See `Step.start_epoch`."""
        self.sums = totals or MetricSums()
        self.num_seen = 0
        self.labels.clear()

    def weights(self) -> dict[str, Tensor]:
        """See `Step.weights`."""
        return self._named(self.flat if self.average is None else self.average)

    def state(self) -> dict[str, Any]:
        """See `Step.state`."""
        return {
            "num_steps": self.num_steps,
            "weights": copied(self._named(self.flat)),
            "momentum": copied(self._named(self.momentum)) if self.num_steps else {},
            "average": copied(self._named(self.average)) if self.average is not None else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Step.load_state`."""
        self.num_steps = state["num_steps"]
        assign(self._named(self.flat), state["weights"])
        if state["momentum"]:
            assign(self._named(self.momentum), state["momentum"])
        if self.average is not None:
            assign(self._named(self.average), state["average"])

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a flat buffer's views by the parameters' names."""
        return {
            name: flat.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
            for name, parameter in self.model.named_parameters()
        }
