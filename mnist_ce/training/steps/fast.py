"""One optimisation step on the CPU, near the cost of its matrix products.

It computes what the plain step computes, in shares. In phase 1 each share takes its part of the
batch forward, and back to the gradient of the loss by every layer's output. In phase 2 each makes
its part of the *rows* of every weight gradient, from all images, and updates those rows. So threads
wait for each other twice per step only. Every product is single-threaded: which thread computes
which share changes no bit; the number of shares does.

- A layer's bias is a column of its matrix [W b], and its input A has a column of ones. With D the
  gradient of the loss by a layer's output,

      dL/d[W b] = Dᵀ·A,    dL/dA = D·W, zero where A is zero (ReLU).

- Both have columns of zeros up to a multiple of 16: for such widths MKL's products take a seventh
  less time.
- torch's fused kernel updates a share's rows in one pass over weights, gradients and momentum.
- It runs in inference mode, without autograd's bookkeeping, on buffers that are allocated once.
- Right predictions are counted over many batches at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from mnist_ce.runs.train_state import MetricSums
from mnist_ce.system.device import use_threads
from mnist_ce.system.workers import Workers
from mnist_ce.training.steps.base import NonFiniteLossError, Step, Tensors

ALIGNED = 16  # floats: a cache line, and a register of AVX-512
PENDING_BATCHES = 64  # between two counts of right predictions


class ForwardShare(NamedTuple):
    """A share's images in the buffers of a batch, for phase 1."""

    rows: slice  # of the batch
    pixels: Tensor  # uint8 [rows, 784], before scaling
    images: Tensor  # float32 [rows, 784]: a view of inputs[0]
    inputs: list[Tensor]  # of each layer, [rows, padded inputs]
    outputs: list[Tensor]  # of each layer but the last, after the ReLU: views of the next inputs
    gradients: list[Tensor]  # of the loss by each layer's output, [rows, outputs]
    padded_gradients: list[Tensor]  # with columns that have no meaning, [rows, padded outputs]


class Batch(NamedTuple):
    """The buffers of all batches of one size."""

    shares: list[ForwardShare]
    inputs: list[Tensor]  # of each layer, [batch, padded inputs]
    gradients: list[list[Tensor]]  # by each share's part of each layer's output, [part, batch]


class UpdateShare(NamedTuple):
    """A share's rows of each layer's matrix, for phase 2: [part of the outputs, padded inputs]."""

    weights: list[Tensor]
    gradients: list[Tensor]
    momentum: list[Tensor]
    average: list[Tensor]


class FastStep(Step):
    """See the module's text. The model's parameters become views of the padded matrices."""

    def _setup(self) -> None:
        self.num_shares = self.loader.num_shares
        self.workers = Workers(min(torch.get_num_threads(), self.num_shares))
        self.matrices, self.parameters = _with_bias_columns(self.parameters)
        momentum, self.momentum = _with_bias_columns(self.momentum)
        average, self.average = _with_bias_columns(self.average)
        for name, parameter in self.model.named_parameters():
            parameter.data = self.parameters[name]
        self.transposed = [matrix.t() for matrix in self.matrices]
        gradients = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.update_shares = [
            UpdateShare(*([m[self._part(len(m), share)] for m in group] for group in groups))
            for groups in [(self.matrices, gradients, momentum, average)]
            for share in range(self.num_shares)
        ]
        self.batches: dict[int, Batch] = {}
        self.linear_relu, self.relu_gradient = linear_relu(), relu_gradient()
        self.update = fused_sgd()
        num_rows = min(PENDING_BATCHES * self.loader.batch_size, len(self.loader.labels))
        self.logits = torch.empty(num_rows, self.model.sizes[-1])
        self.labels = torch.empty(num_rows, dtype=torch.int64)
        self.num_pending = 0  # rows of both that are not yet counted
        self.results: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # views of both

    @property
    def num_workers(self) -> int:
        """How many threads compute the step."""
        return self.workers.num_workers

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on one batch."""
        size = len(indices)
        if self.num_pending + size > len(self.labels):
            self.metrics()
        batch = self.batches.get(size) or self._allocate(size)
        results = self.results.get((self.num_pending, size)) or self._result_rows(size)
        distortion = self.loader.draw_distortion(size, self.num_steps)
        loss_sums = [0.0] * self.num_shares

        def train(worker: int) -> None:
            numbers = range(worker, self.num_shares, self.workers.num_workers)
            for number in numbers:
                share, (logits, labels) = batch.shares[number], results[number]
                part = None if distortion is None else distortion[share.rows]
                own = indices[share.rows]
                if len(own):  # a batch may be smaller than the number of shares
                    self.loader.gather(own, part, share.pixels, inputs=share.images, labels=labels)
                    loss_sums[number] = self._forward_and_back(share, logits, labels)
            self.workers.barrier(worker)
            if math.isfinite(sum(loss_sums)):
                for number in numbers:
                    self._update(number, batch, learning_rate)

        self.workers.run(train)
        loss_sum = sum(loss_sums)
        if not math.isfinite(loss_sum):
            raise NonFiniteLossError(self.num_steps, loss_sum / size)
        self.num_pending += size
        self._count(loss_sum, 0, size)

    def _forward_and_back(self, share: ForwardShare, logits: Tensor, labels: Tensor) -> float:
        """Phase 1: write a share's logits and gradients; return the sum of its losses."""
        *hidden, last = self.transposed
        for inputs, matrix, outputs in zip(share.inputs, hidden, share.outputs, strict=False):
            self.linear_relu(inputs, matrix, outputs)  # → [rows, outputs]
        torch.mm(share.inputs[-1], last, out=logits)
        loss_sum = self.objective.loss_and_gradient(logits, labels, share.gradients[-1])
        for layer in range(len(hidden), 0, -1):
            below = share.padded_gradients[layer - 1]
            torch.mm(share.gradients[layer], self.matrices[layer], out=below)
            self.relu_gradient(share.gradients[layer - 1], share.outputs[layer - 1])
        return loss_sum

    def _update(self, number: int, batch: Batch, rate: float) -> None:
        """Phase 2: make a share's rows of all gradients, and update these rows of the weights."""
        share, config = self.update_shares[number], self.config
        mean = 1 / len(batch.inputs[0])
        for product, gradient, inputs in zip(
            share.gradients, batch.gradients[number], batch.inputs, strict=True
        ):
            torch.addmm(product, gradient, inputs, beta=0, alpha=mean, out=product)
        self.update(
            share.weights,
            share.gradients,
            share.momentum if config.momentum else [],
            lr=rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            dampening=0.0,
            maximize=False,
        )
        for average, weight in zip(share.average, share.weights, strict=False):
            average.lerp_(weight, self.average_weight)

    def _result_rows(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the rows of logits and labels that each share of the next batch writes."""
        key, start = (self.num_pending, size), self.num_pending
        parts = [self._part(size, share) for share in range(self.num_shares)]
        rows = [slice(start + part.start, start + part.stop) for part in parts]
        self.results[key] = [(self.logits[part], self.labels[part]) for part in rows]
        return self.results[key]

    def _allocate(self, size: int) -> Batch:
        """Allocate the buffers of the batches of one size."""
        sizes = self.model.sizes
        inputs = [torch.zeros(size, _padded(n)) for n in sizes[:-1]]
        for tensor, n in zip(inputs, sizes, strict=False):
            tensor[:, n] = 1.0
        gradients = [torch.zeros(size, _padded(n)) for n in sizes[1:]]
        shares = []
        for share in range(self.num_shares):
            rows = self._part(size, share)
            images, *outputs = (t[rows, :n] for t, n in zip(inputs, sizes, strict=False))
            shares.append(
                ForwardShare(
                    rows=rows,
                    pixels=torch.empty(images.shape, dtype=torch.uint8),
                    images=images,
                    inputs=[tensor[rows] for tensor in inputs],
                    outputs=outputs,
                    gradients=[t[rows, :n] for t, n in zip(gradients, sizes[1:], strict=True)],
                    padded_gradients=[tensor[rows] for tensor in gradients],
                )
            )
        parts = [
            [t.t()[self._part(n, share)] for t, n in zip(gradients, sizes[1:], strict=True)]
            for share in range(self.num_shares)
        ]
        self.batches[size] = batch = Batch(shares, inputs, parts)
        return batch

    def _part(self, length: int, share: int) -> slice:
        return slice(length * share // self.num_shares, length * (share + 1) // self.num_shares)

    def metrics(self) -> MetricSums:
        """Return the sums, after counting the predictions of the batches since the last call."""
        if self.num_pending:
            with use_threads(1):  # torch's own would spin, and take a core from the workers
                predictions = self.objective.predictions(self.logits[: self.num_pending])
                correct = predictions == self.labels[: self.num_pending]
                self.sums.num_correct += int(correct.sum())
            self.num_pending = 0
        return super().metrics()

    def reset_metrics(self, sums: MetricSums | None = None) -> None:
        """Begin the sums of an epoch; the model must still use the buffer of this step."""
        for name, parameter in self.model.named_parameters():
            assert parameter.data_ptr() == self.parameters[name].data_ptr(), f"{name} was replaced"
        super().reset_metrics(sums)
        self.num_pending = 0


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


@lru_cache(maxsize=1)
def linear_relu() -> Callable[[Tensor, Tensor, Tensor], object]:
    """Return what writes ReLU(x · m) into `out`: [rows, n] · [n, outputs] → [rows, outputs].

    The one private operator saves a call; NaN stays NaN.
    """
    with contextlib.suppress(AttributeError, RuntimeError, TypeError):
        operator = torch.ops.aten._addmm_activation.out
        out = torch.empty(2, 2)
        operator(out, torch.tensor([[torch.nan], [-1.0]]), torch.ones(1, 2), beta=0, out=out)
        if str(out.tolist()) == "[[nan, nan], [0.0, 0.0]]":
            return lambda x, m, out: operator(out, x, m, beta=0, out=out)
    return lambda x, m, out: torch.mm(x, m, out=out).relu_()


@lru_cache(maxsize=1)
def relu_gradient() -> Callable[[Tensor, Tensor], object]:
    """Return what sets a gradient to 0, in place, where the ReLU's output is 0: [rows, width].

    For the four hidden layers and 64 images torch's kernel takes 14 µs, the public way 250 µs.
    """
    with contextlib.suppress(AttributeError, RuntimeError, TypeError):
        kernel = torch.ops.aten.threshold_backward.grad_input
        gradient = torch.ones(3)
        kernel(gradient, torch.tensor([0.0, 0.5, torch.nan]), 0.0, grad_input=gradient)
        if gradient.tolist() == [0, 1, 1]:
            return lambda above, output: kernel(above, output, 0.0, grad_input=above)
    return lambda above, output: above.masked_fill_(output <= 0, 0.0)


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
