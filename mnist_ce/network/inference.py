"""Inference: the logits of any number of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnist_ce.network.model import MLP, evaluation_mode
from mnist_ce.system.workers import shared_workers

BATCH_SIZE = 500


def scale_pixels(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Return pixel/255 as the network's input: uint8 [n, …] → float32 [n, 784] in [0, 1]."""
    return torch.div(images.flatten(start_dim=1), 255.0, out=out)


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

    with evaluation_mode(model):
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
