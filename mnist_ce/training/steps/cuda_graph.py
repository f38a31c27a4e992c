"""One optimisation step on a CUDA GPU, captured once as a graph and replayed.

A network this small leaves a GPU waiting for Python: launching each of the step's kernels costs
more than running it. A CUDA graph launches them all at once. Capture freezes every Python number,
so the learning rate, the share of the average and the number of the step live in device tensors.
The host never waits: losses and right answers are added up on the device, and a step whose loss is
not finite marks itself and turns its own update, and every later one, into nothing. The mark is
read whenever the sums or the state are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import MLP
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

__all__ = ["CudaGraphStep"]

Replay = Callable[[], None]
WARMUP_STEPS = 3  # before a capture, as torch's notes on CUDA graphs ask


@dataclass
class Place:
    """The tensors that one captured graph reads, at fixed addresses."""

    indices: Tensor  # int64 [batch]
    images: Tensor | None  # float32 [batch, 784] where they are distorted before the graph
    replay: Replay


class CudaGraphStep:
    """See the module's text; arguments as for `PlainStep`, all on one CUDA device.

    Args:
        model: The network.
        batches: Where the images come from.
        objective: What is minimised.
        settings: The optimizer's.
        capture: Turns the step's body into its replay; None: as a CUDA graph.
    """

    def __init__(
        self,
        model: MLP,
        batches: DeviceLoader,
        objective: Objective,
        settings: OptimizerSettings,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.objective = objective
        self.settings = settings
        self.capture = capture or self._capture_graph
        self.num_steps = 0
        self.parameters = list(model.parameters())
        self.momenta = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        device = batches.device
        self.rate = torch.zeros((), device=device)
        self.share = torch.zeros((), device=device)  # of the new weights in the average
        self.step_number = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.num_examples = 0
        self.places: dict[tuple[int, bool], Place] = {}

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """See `Step.__call__`; a loss that is not finite is told by `totals` or `state`."""
        distorted = self.batches.augments(self.num_steps)
        self.rate.fill_(learning_rate)
        self.share.fill_(1 - average_decay(self.settings.average_decay, self.num_steps))
        place = self.places.get((len(indices), distorted)) or self._place(indices, distorted)
        place.indices.copy_(indices)
        if place.images is not None:
            self.batches.gather(indices, self.num_steps, out=place.images)
        place.replay()
        self.num_examples += len(indices)
        self.num_steps += 1

    def _place(self, indices: Tensor, distorted: bool) -> Place:
        """Capture the step for batches of one size, distorted beforehand or not."""
        images = torch.zeros(len(indices), self.model.sizes[0], device=self.batches.device)
        place = Place(indices.clone(), images if distorted else None, lambda: None)
        place.replay = self.capture(lambda: self._body(place))
        self.places[len(indices), distorted] = place
        return place

    def _body(self, place: Place) -> None:
        """Do the whole step with tensors alone, so that it can be captured."""
        if place.images is None:
            images, labels = self.batches.gather_plain(place.indices)
        else:
            images, labels = place.images, self.batches.labels[place.indices]
        logits = self.model(images)  # → [batch, classes]
        loss = self.objective.loss(logits, labels)  # → []
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
            self.first_bad_step.copy_(torch.where(bad, self.step_number, self.first_bad_step))
            good = self.first_bad_step < 0
            self._update(gradients, good)
            right = (self.objective.predictions(logits) == labels).sum()
            self.loss_sum += torch.where(good, loss.double() * len(labels), 0.0)
            self.num_correct += torch.where(good, right, 0)
            self.step_number += 1

    def _update(self, gradients: tuple[Tensor, ...], good: Tensor) -> None:
        """Do what `torch.optim.SGD` does, where the step is good."""
        settings = self.settings
        for weight, momentum, average, gradient in zip(
            self.parameters, self.momenta, self.averages, gradients, strict=True
        ):
            gradient = gradient.add(weight, alpha=settings.weight_decay)
            new_momentum = momentum.mul(settings.momentum).add_(gradient)
            update = new_momentum
            if settings.nesterov:
                update = gradient.add(new_momentum, alpha=settings.momentum)
            momentum.copy_(torch.where(good, new_momentum, momentum))
            weight.copy_(torch.where(good, weight - self.rate * update, weight))
            if settings.average_decay:
                moved = torch.lerp(average, weight, self.share)
                average.copy_(torch.where(good, moved, average))

    def _capture_graph(self, body: Replay) -> Replay:
        """Capture a CUDA graph of the body, leaving all tensors as they were."""
        state = self._tensors()
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

    def _tensors(self) -> list[Tensor]:
        counters = [self.step_number, self.first_bad_step, self.loss_sum, self.num_correct]
        return [*self.parameters, *self.momenta, *self.averages, *counters]

    def _check(self) -> None:
        """Raise if some step's loss was not finite; waits for the device."""
        first_bad_step = int(self.first_bad_step)
        if first_bad_step >= 0:
            raise NonFiniteLossError(first_bad_step)

    def totals(self) -> MetricSums:
        """See `Step.totals`.

        Raises:
            NonFiniteLossError: If some step's loss was not finite.
        """
        self._check()
        return MetricSums(float(self.loss_sum), int(self.num_correct), self.num_examples)

    def start_epoch(self, totals: MetricSums | None = None) -> None:
        """See `Step.start_epoch`."""
        totals = totals or MetricSums()
        self.loss_sum.fill_(totals.loss_sum)
        self.num_correct.fill_(totals.num_correct)
        self.num_examples = totals.num_examples

    def weights(self) -> dict[str, Tensor]:
        """See `Step.weights`."""
        if not self.settings.average_decay:
            return named_weights(self.model)
        return self._named(self.averages)

    def state(self) -> dict[str, Any]:
        """See `Step.state`.

        Raises:
            NonFiniteLossError: If some step's loss was not finite.
        """
        self._check()
        return {
            "num_steps": self.num_steps,
            "weights": copied(named_weights(self.model)),
            "momentum": copied(self._named(self.momenta)) if self.num_steps else {},
            "average": copied(self._named(self.averages)) if self.settings.average_decay else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Step.load_state`."""
        self.num_steps = state["num_steps"]
        self.step_number.fill_(self.num_steps)
        assign(named_weights(self.model), state["weights"])
        if state["momentum"]:
            assign(self._named(self.momenta), state["momentum"])
        if self.settings.average_decay:
            assign(self._named(self.averages), state["average"])

    def _named(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(named_weights(self.model), tensors, strict=True))
