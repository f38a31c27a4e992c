"""One optimisation step on the CPU, near the cost of its matrix products.

It computes what the plain step computes, in shards. In phase 1 each shard takes its images forward,
and back to the gradient of the loss by every layer's output. In phase 2 each makes its part of the
*rows* of every weight gradient, from all images, and updates those rows. So threads wait for each
other twice per step only. Every product is single-threaded: which thread computes which shard
changes no bit; the number of shards does.

- A layer's bias is a column of its matrix [W b], and its input A has a column of ones. With D the
  gradient of the loss by a layer's output,

      dL/d[W b] = Dᵀ·A,    dL/dA = D·W, zero where A is zero (ReLU).

- Both have columns of zeros up to a multiple of 16: for such widths MKL's products take a seventh
  less time.
- torch's fused kernel updates a shard's rows in one pass over weights, gradients and momentum.
- It runs in inference mode, without autograd's bookkeeping, on buffers that are allocated once.
"""

from __future__ import annotations

import functools
import math
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_ce.network.model import MLP
from mnist_ce.system.workers import Workers
from mnist_ce.training.steps import NonFiniteLossError, Step, Tensors

# Three operators are not public: one saves a call; `threshold_backward` takes 14 µs for the four
# hidden layers and 64 images, the public way 250 µs; `_fused_sgd_` is that of `SGD(fused=True)`.
ops = torch.ops.aten
ALIGNED = 16  # floats: a cache line, and a register of AVX-512


class Images(NamedTuple):
    """A shard's images in the buffers of a batch, for phase 1."""

    rows: slice  # of the batch
    inputs: list[Tensor]  # of each layer, [rows, padded inputs]
    activations: list[Tensor]  # views of them: the images, then each hidden layer's after the ReLU
    logits: Tensor  # [rows, outputs]
    gradients: list[Tensor]  # of the loss by each layer's output, [rows, outputs]
    padded_gradients: list[Tensor]  # with columns that have no meaning, [rows, padded outputs]


class Layer(NamedTuple):
    """A shard's rows of one layer's matrix, for phase 2: [part of the outputs, padded inputs]."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    average: Tensor | None  # None: no average of the weights


class Batch(NamedTuple):
    """The buffers of all batches of one size."""

    shards: list[Images]
    inputs: list[Tensor]  # of each layer, [batch, padded inputs]
    gradients: list[list[Tensor]]  # by each shard's part of each layer's output, [part, batch]


class FastStep(Step):
    """See the module's text. The model's parameters become views of the padded matrices."""

    kind = "fast"
    model: MLP

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes, self.num_shards = self.model.sizes, self.config.train.shares
        self.workers = Workers(min(torch.get_num_threads(), self.num_shards))
        self.num_workers = self.workers.num_workers
        self.matrices, self.parameters = _with_bias_columns(self.parameters)
        momenta, self.momentum = _with_bias_columns(self.momentum)
        averages, self.average = _with_bias_columns(self.average)
        for name, parameter in self.model.named_parameters():
            parameter.data = self.parameters[name]
        self.transposed = [matrix.t() for matrix in self.matrices]
        self.layers: list[list[Layer]] = [[] for _ in range(self.num_shards)]
        for matrix, momentum, average in zip_longest(self.matrices, momenta, averages):
            gradient = torch.zeros_like(matrix)
            for shard, layers in enumerate(self.layers):
                rows = self._part(len(matrix), shard)
                moving = None if average is None else average[rows]
                layers.append(Layer(matrix[rows], gradient[rows], momentum[rows], moving))
        self.batches: dict[int, Batch] = {}
        sgd = self.config.optimizer.model_dump(include={"momentum", "weight_decay", "nesterov"})
        fixed = {"dampening": 0.0, "maximize": False, "is_first_step": False}
        self.sgd = functools.partial(torch._fused_sgd_, **sgd, **fixed)

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        size = len(indices)
        batch = self.batches.get(size) or self._allocate(size)
        distortion = self.loader.draw_distortion(size, self.num_steps)
        loss_sums, num_correct = [0.0] * self.num_shards, [0] * self.num_shards

        def train(worker: int) -> None:
            shards = range(worker, self.num_shards, self.num_workers)
            for shard in shards:
                images = batch.shards[shard]
                chosen = indices[images.rows]
                if len(chosen):  # a batch may be smaller than the number of shards
                    part = None if distortion is None else distortion[images.rows]
                    _, labels = self.loader.gather(chosen, part, images.activations[0])
                    loss_sums[shard], num_correct[shard] = self._forward_and_back(images, labels)
            self.workers.barrier(worker)
            if math.isfinite(sum(loss_sums)):
                for shard in shards:
                    self._update(self.layers[shard], batch, shard, learning_rate)

        self.workers.run(train)
        loss_sum = sum(loss_sums)
        if not math.isfinite(loss_sum):
            raise NonFiniteLossError(self.num_steps, loss_sum / size)
        self._count(loss_sum, sum(num_correct), size)

    def _forward_and_back(self, shard: Images, labels: Tensor) -> tuple[float, int]:
        """Phase 1: write a shard's gradients; return its sum of losses and right predictions."""
        *hidden, last = self.transposed
        for layer, matrix in enumerate(hidden):
            inputs, outputs = shard.inputs[layer], shard.activations[layer + 1]
            ops._addmm_activation.out(outputs, inputs, matrix, beta=0, out=outputs)  # with ReLU
        logits = torch.mm(shard.inputs[-1], last, out=shard.logits)
        loss_sum = self.objective.loss_and_gradient(logits, labels, shard.gradients[-1])
        for layer in range(len(hidden), 0, -1):
            below = shard.padded_gradients[layer - 1]
            torch.mm(shard.gradients[layer], self.matrices[layer], out=below)
            gradient, outputs = shard.gradients[layer - 1], shard.activations[layer]
            # 0 where the ReLU's output is 0
            ops.threshold_backward.grad_input(gradient, outputs, 0.0, grad_input=gradient)
        correct = torch.count_nonzero(self.objective.predictions(logits) == labels)
        return loss_sum, int(correct.item())

    def _update(self, layers: list[Layer], batch: Batch, shard: int, learning_rate: float) -> None:
        """Phase 2: make a shard's rows of all gradients, and update these rows of the weights."""
        mean = 1 / len(batch.inputs[0])
        for layer, gradient, inputs in zip(
            layers, batch.gradients[shard], batch.inputs, strict=True
        ):
            torch.addmm(layer.gradient, gradient, inputs, beta=0, alpha=mean, out=layer.gradient)
            momenta = [layer.momentum] if self.config.optimizer.momentum else []
            self.sgd([layer.weight], [layer.gradient], momenta, lr=learning_rate)
            if layer.average is not None:
                layer.average.lerp_(layer.weight, self.average_weight)

    def _allocate(self, size: int) -> Batch:
        inputs = [torch.zeros(size, _padded(n)) for n in self.sizes[:-1]]
        for tensor, n in zip(inputs, self.sizes, strict=False):
            tensor[:, n] = 1.0
        outputs = self.sizes[1:]
        gradients = [torch.zeros(size, _padded(n)) for n in outputs]
        batch = Batch([], inputs, [])
        for shard in range(self.num_shards):
            rows = self._part(size, shard)
            batch.shards.append(
                Images(
                    rows=rows,
                    inputs=[tensor[rows] for tensor in inputs],
                    activations=[t[rows, :n] for t, n in zip(inputs, self.sizes, strict=False)],
                    logits=torch.empty(rows.stop - rows.start, outputs[-1]),
                    gradients=[t[rows, :n] for t, n in zip(gradients, outputs, strict=True)],
                    padded_gradients=[tensor[rows] for tensor in gradients],
                )
            )
            batch.gradients.append(
                [t.t()[self._part(n, shard)] for t, n in zip(gradients, outputs, strict=True)]
            )
        self.batches[size] = batch
        return batch

    def _part(self, length: int, shard: int) -> slice:
        return slice(length * shard // self.num_shards, length * (shard + 1) // self.num_shards)


def _with_bias_columns(tensors: Tensors) -> tuple[list[Tensor], Tensors]:
    """Copy weight and bias of each layer into one matrix [W b 0]; return also views by name."""
    matrices: list[Tensor] = []
    views: Tensors = {}
    for name, weight in tensors.items():
        if weight.ndim == 2:
            bias_name = name.removesuffix("weight") + "bias"
            num_inputs = weight.shape[1]
            matrices.append(matrix := torch.zeros(len(weight), _padded(num_inputs)))
            views[name], views[bias_name] = matrix[:, :num_inputs], matrix[:, num_inputs]
            views[name].copy_(weight)
            views[bias_name].copy_(tensors[bias_name])
    return matrices, views


def _padded(num_floats: int) -> int:
    """Return the width of a matrix with the column of the bias, or of ones."""
    return -(-(num_floats + 1) // ALIGNED) * ALIGNED
