"""One optimisation step on a CUDA GPU, captured once as a graph and replayed.

A network this small leaves a GPU waiting for Python: launching each of the step's kernels takes
longer than running it. A CUDA graph launches them all at once. Capture freezes every Python number,
so the learning rate, the weight of the average and the number of the step live in device tensors.
The host never waits: losses and right predictions are added up on the device. On a non-finite loss
the step sets a device flag; this and all later updates become no-ops. The flag is checked when
metrics or state are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_ce.runs.train_state import MetricSums
from mnist_ce.training.steps.base import NonFiniteLossError, Step

Replay = Callable[[], None]
WARMUP_STEPS = 3  # before a capture, as torch's notes on CUDA graphs ask


@dataclass
class StaticInputs:
    """The tensors that one captured graph reads, at fixed addresses."""

    indices: Tensor  # int64 [batch]
    images: Tensor | None  # float32 [batch, 784] where they are distorted before the graph
    replay: Replay


class CudaGraphStep(Step):
    """See the module's text; model and images are on one CUDA device."""

    def _setup(self) -> None:
        device = self.loader.device
        self.learning_rate = torch.zeros((), device=device)
        self.ema_weight = torch.zeros((), device=device)  # of the new weights in the average
        self.step_number = torch.zeros((), dtype=torch.int64, device=device)
        self.first_nonfinite_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.num_examples = 0
        self.graphs: dict[tuple[int, bool], StaticInputs] = {}

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on one batch; a non-finite loss is raised by `metrics` and `state`."""
        is_augmented = self.loader.is_augmented(self.num_steps)
        self.learning_rate.fill_(learning_rate)
        self.ema_weight.fill_(self.average_weight)
        key = (len(indices), is_augmented)
        inputs = self.graphs.get(key) or self._capture_for(indices, is_augmented)
        inputs.indices.copy_(indices)
        if inputs.images is not None:
            self.loader.get_batch(indices, self.num_steps, out=inputs.images)
        inputs.replay()
        self.num_examples += len(indices)
        self.num_steps += 1

    def _capture_for(self, indices: Tensor, is_augmented: bool) -> StaticInputs:
        """Capture the step for batches of one size, distorted beforehand or not."""
        images = torch.zeros(len(indices), self.model.sizes[0], device=self.loader.device)
        inputs = StaticInputs(indices.clone(), images if is_augmented else None, lambda: None)
        inputs.replay = self.capture(lambda: self._train_step(inputs))
        self.graphs[len(indices), is_augmented] = inputs
        return inputs

    def _train_step(self, inputs: StaticInputs) -> None:
        """Do the whole step with tensors alone, so that it can be captured."""
        if inputs.images is None:
            images, labels = self.loader.get_raw_batch(inputs.indices)
        else:
            images, labels = inputs.images, self.loader.labels[inputs.indices]
        logits = self.model(images)  # → [batch, outputs]
        loss = self.objective.loss(logits, labels)  # → []
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        with torch.no_grad():
            failed = ~torch.isfinite(loss) & (self.first_nonfinite_step < 0)
            self.first_nonfinite_step.copy_(
                torch.where(failed, self.step_number, self.first_nonfinite_step)
            )
            is_finite = self.first_nonfinite_step < 0
            self._update(gradients, is_finite)
            num_correct = (self.objective.predictions(logits) == labels).sum()
            self.loss_sum += torch.where(is_finite, loss.double() * len(labels), 0.0)
            self.num_correct += torch.where(is_finite, num_correct, 0)
            self.step_number += 1

    def _update(self, gradients: tuple[Tensor, ...], is_finite: Tensor) -> None:
        """Do what `torch.optim.SGD` does, if every loss so far was finite."""
        config = self.config
        for (name, weight), gradient in zip(self.parameters.items(), gradients, strict=True):
            momentum = self.momentum[name]
            gradient = gradient.add(weight, alpha=config.weight_decay)
            new_momentum = momentum.mul(config.momentum).add_(gradient)
            update = new_momentum
            if config.nesterov:
                update = gradient.add(new_momentum, alpha=config.momentum)
            momentum.copy_(torch.where(is_finite, new_momentum, momentum))
            weight.copy_(torch.where(is_finite, weight - self.learning_rate * update, weight))
            if self.average:
                average = self.average[name]
                moved = torch.lerp(average, weight, self.ema_weight)
                average.copy_(torch.where(is_finite, moved, average))

    def capture(self, body: Replay) -> Replay:
        """Return the replay of a CUDA graph of the body; leaves all tensors as they were."""
        counters = [self.step_number, self.first_nonfinite_step, self.loss_sum, self.num_correct]
        tensors = (self.parameters, self.momentum, self.average)
        state = [*counters, *(t for group in tensors for t in group.values())]
        before = [tensor.detach().clone() for tensor in state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        with torch.no_grad():
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(old)
        return graph.replay

    def _check(self) -> None:
        """Raise if some step's loss was not finite; waits for the device."""
        first_nonfinite_step = int(self.first_nonfinite_step)
        if first_nonfinite_step >= 0:
            raise NonFiniteLossError(first_nonfinite_step)

    def metrics(self) -> MetricSums:
        """Return the sums; raises NonFiniteLossError if some step's loss was not finite."""
        self._check()
        return MetricSums(float(self.loss_sum), int(self.num_correct), self.num_examples)

    def deferred_metrics(self) -> Callable[[], MetricSums]:
        """Copy the sums on the device; the function raises NonFiniteLossError as `metrics` does."""
        counters = [self.loss_sum, self.num_correct, self.first_nonfinite_step]
        copied = torch.stack([counter.double() for counter in counters])
        num_examples = self.num_examples

        def read() -> MetricSums:
            loss_sum, num_correct, first_nonfinite_step = copied.tolist()
            if first_nonfinite_step >= 0:
                raise NonFiniteLossError(int(first_nonfinite_step))
            return MetricSums(loss_sum, int(num_correct), num_examples)

        return read

    def reset_metrics(self, sums: MetricSums | None = None) -> None:
        """Begin the sums of an epoch."""
        sums = sums or MetricSums()
        self.loss_sum.fill_(sums.loss_sum)
        self.num_correct.fill_(sums.num_correct)
        self.num_examples = sums.num_examples

    def state(self) -> dict[str, Any]:
        """Return the state; raises NonFiniteLossError if some step's loss was not finite."""
        self._check()
        return super().state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state(state)
        self.step_number.fill_(self.num_steps)
