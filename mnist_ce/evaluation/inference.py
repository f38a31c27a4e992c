"""Inference and evaluation on labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnist_ce.data.loader import scale_pixels
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Objective
from mnist_ce.system.workers import shared_workers

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evaluation:
    """A network's results on labelled images, all on the CPU."""

    logits: Tensor  # float32 [n, outputs]
    labels: Tensor  # int64 [n]
    predictions: Tensor  # int64 [n]
    loss: float  # the mean per example

    @property
    def num_correct(self) -> int:
        """How many predictions are right."""
        return int((self.predictions == self.labels).sum())

    @property
    def num_examples(self) -> int:
        """How many images there are."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The fraction of right predictions."""
        return self.num_correct / self.num_examples


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: Tensor, *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Return the logits of any number of images, float32 [n, outputs] on the CPU.

    `model` is any module that maps (pixel/255 - mean) / std, float32 [batch, 784], to [batch,
    outputs]; it is called in evaluation mode. `images` are uint8 [n, 28, 28], on its device.
    """
    batches = torch.split(images, BATCH_SIZE)
    logits: list[Tensor] = [images] * len(batches)  # each is replaced

    def predict_batch(number: int) -> None:
        inputs = scale_pixels(batches[number])  # → [batch, 784]
        if (mean, std) != (0.0, 1.0):
            inputs = (inputs - mean) / std
        logits[number] = model(inputs)  # → [batch, outputs]

    with _evaluation_mode(model):
        if images.device.type == "cpu" and _is_plain(model):
            # A batch per worker; the number of threads changes no bit.
            workers = shared_workers(min(torch.get_num_threads(), len(batches)))
            workers.map(predict_batch, len(batches))
        else:
            for number in range(len(batches)):
                predict_batch(number)
    return torch.cat(logits).cpu()


def _is_plain(model: nn.Module) -> bool:
    """Return whether a call of the model does what `MLP.forward` does and nothing else."""
    return type(model) is MLP and all(
        type(module) in (MLP, nn.Linear)
        and "forward" not in vars(module)
        and not any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
        for module in model.modules()
    )


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Evaluation:
    """Predict every image and take the mean of the losses, without label smoothing.

    `labels` are int64 [n], on any device; for the other arguments see `predict_logits`.
    """
    logits = predict_logits(model, images, mean=mean, std=std)
    labels = labels.cpu()
    loss = objective.example_losses(logits, labels).double().mean().item()
    return Evaluation(logits, labels, objective.predictions(logits), loss)
