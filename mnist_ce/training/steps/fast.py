"""One optimisation step on the CPU, near the cost of its matrix products.

It computes what the plain step computes, with less around it:

- Each layer is updated by torch's fused kernel, one pass over its weights, gradient and momentum
  while the gradient is still in the cache; nothing is zeroed, collected or copied.
- All weights lie in one flat buffer, so that averaging them is one pass too.
- oneDNN computes the products, where torch has it.
- The objective returns its gradient by the logits; those of the layers are written out. With D the
  gradient of the loss by a layer's output and A the layer's input,

      dL/dW = Dᵀ·A,    dL/db = Σ D over the batch,    dL/dA = D·W, zero where A is zero (ReLU).
- It runs in inference mode, without autograd's bookkeeping.
- Right predictions are counted over many batches at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from mnist_ce.network.linear_ops import input_gradient, linear, relu_gradient, weight_gradient
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.training.steps.base import NonFiniteLossError, Step, Tensors

CACHE_LINE = 16  # floats
PENDING_BATCHES = 64  # between two counts of right predictions


class Layer(NamedTuple):
    """The tensors that an update of one layer changes in place."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor  # [outputs]
    weight_momentum: Tensor
    bias_momentum: Tensor


class FastStep(Step):
    """See the module's text. The model's parameters become views of one buffer."""

    def _setup(self) -> None:
        self.flat, self.parameters = _in_one_buffer(self.parameters)
        self.flat_average, self.average = _in_one_buffer(self.average)
        for name, parameter in self.model.named_parameters():
            parameter.data = self.parameters[name]
        self.layers = [
            Layer(
                *(self.parameters[f"{name}.{part}"] for part in ("weight", "bias")),
                *(self.momentum[f"{name}.{part}"] for part in ("weight", "bias")),
            )
            for name, _ in self.model.named_children()
        ]
        self.relu_gradient, self.update = relu_gradient(), fused_sgd()
        num_rows = min(PENDING_BATCHES * self.loader.batch_size, len(self.loader.labels))
        self.logits = torch.empty(num_rows, self.model.sizes[-1])
        self.labels: list[Tensor] = []  # of the rows of logits that are not yet counted
        self.num_pending = 0

    @torch.inference_mode()
    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on one batch."""
        size = len(indices)
        images, labels = self.loader.get_batch(indices, self.num_steps)  # [batch, 784], [batch]
        if self.num_pending + size > len(self.logits):
            self.sums = self.metrics()
            self._drop_pending()
        logits = self.logits[self.num_pending : self.num_pending + size]
        inputs = self._forward(images, logits)
        loss, gradient = self.objective.loss_and_gradient(logits, labels)  # [], [batch, outputs]
        mean_loss = loss.item()
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(self.num_steps, mean_loss)
        self._backward_and_update(inputs, gradient, learning_rate)
        if self.average:
            self.flat_average.lerp_(self.flat, self.average_weight)
        self.labels.append(labels)
        self.num_pending += size
        self._count(mean_loss * size, 0, size)

    def _forward(self, images: Tensor, logits: Tensor) -> list[Tensor]:
        """Write the logits; return the input of each layer, [batch, inputs of the layer]."""
        inputs = [images]
        *hidden, last = self.layers
        for layer in hidden:
            inputs.append(linear(inputs[-1], layer.weight, layer.bias).relu_())
        torch.addmm(last.bias, inputs[-1], last.weight.t(), out=logits)
        return inputs

    def _backward_and_update(self, inputs: list[Tensor], gradient: Tensor, rate: float) -> None:
        """From the last layer to the first: pass the gradient down, then update the layer."""
        config, ones = self.config, torch.ones(len(gradient))
        for number in range(len(self.layers) - 1, -1, -1):
            layer, layer_input = self.layers[number], inputs[number]
            above = gradient  # of the loss by this layer's output, [batch, outputs]
            if number:
                gradient = input_gradient(above, layer.weight)  # → [batch, inputs]
                self.relu_gradient(gradient, layer_input)
            self.update(
                [layer.weight, layer.bias],
                [weight_gradient(above, layer_input), torch.mv(above.t(), ones)],
                [layer.weight_momentum, layer.bias_momentum] if config.momentum else [],
                lr=rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.nesterov,
                dampening=0.0,
                maximize=False,
            )

    def metrics(self) -> MetricSums:
        """Return the sums, with the predictions that are not yet counted."""
        sums = super().metrics()
        if self.labels:
            predictions = self.objective.predictions(self.logits[: self.num_pending])
            sums.num_correct += int((predictions == torch.cat(self.labels)).sum())
        return sums

    def reset_metrics(self, sums: MetricSums | None = None) -> None:
        """Begin the sums of an epoch; the model must still use the buffer of this step."""
        for name, parameter in self.model.named_parameters():
            assert parameter.data_ptr() == self.parameters[name].data_ptr(), f"{name} was replaced"
        super().reset_metrics(sums)
        self._drop_pending()

    def _drop_pending(self) -> None:
        self.labels.clear()
        self.num_pending = 0


def _in_one_buffer(tensors: Tensors) -> tuple[Tensor, Tensors]:
    """Copy tensors into one buffer, matrices on cache lines; return it and its views by name."""
    starts, end = [], 0
    for tensor in tensors.values():
        if tensor.ndim == 2:
            end = _rounded_up(end)
        starts.append(end)
        end += tensor.numel()
    flat = torch.zeros(_rounded_up(end))
    views = {}
    for (name, tensor), start in zip(tensors.items(), starts, strict=True):
        views[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        views[name].copy_(tensor)
    return flat, views


def _rounded_up(num_floats: int) -> int:
    return -(-num_floats // CACHE_LINE) * CACHE_LINE


@lru_cache(maxsize=1)
def fused_sgd() -> Callable[..., object]:
    """Return the kernel of `torch.optim.SGD(fused=True)`, which is private, or a public equal.

    Its arguments are those of `torch.optim.sgd.sgd`; momentum begins at zero.
    """
    exact = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25, "nesterov": True}  # no rounding
    public = partial(sgd, foreach=False)
    try:
        private = partial(torch._fused_sgd_, is_first_step=False)
        results = []
        for update in (private, public):
            weight, gradient, momentum = (torch.full((20,), value) for value in (1.0, 2.0, 4.0))
            update([weight], [gradient], [momentum], **exact, dampening=0.0, maximize=False)
            results.append(torch.stack([weight, momentum]))
        return private if torch.equal(*results) else public
    except (AttributeError, RuntimeError, TypeError):
        return public
