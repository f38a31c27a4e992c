"""The network, a multi-layer perceptron that ends in raw logits, and its inference."""

from __future__ import annotations

import contextlib
import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ce.network import HIDDEN, INPUT_SIZE
from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import as_path
from mnist_ce.system.text import did_you_mean, one_line
from mnist_ce.system.workers import shared_workers

logger = logging.getLogger(__name__)

# What a module may take, the usual form first.
_INPUT_SHAPES = ((1, 28, 28), (INPUT_SIZE,), (28, 28))
# Between the layers of an MLP; another than ReLU only where another program trained it.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "none": torch.positive,
    "leaky": functional.leaky_relu,
    "gelu": functional.gelu,
    "elu": functional.elu,
}


class MLP(nn.Module):
    """Linear layers `l1`, `l2`, …, with a ReLU between them (see `ACTIVATIONS`), none at the end.

    There is no softmax: the cross-entropy takes raw logits and applies log-softmax itself, in a
    form that cannot overflow. A second softmax would flatten the gradients.

    `hidden` are the widths of the hidden layers; `num_outputs` is 1 for a yes/no network.
    """

    def __init__(
        self, hidden: Sequence[int] = HIDDEN, num_outputs: int = 10, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.activation = activation
        self.sizes = (INPUT_SIZE, *hidden, num_outputs)
        for number, (inputs, outputs) in enumerate(pairwise(self.sizes), start=1):
            self.add_module(f"l{number}", nn.Linear(inputs, outputs))

    @property
    def layers(self) -> list[nn.Linear]:
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 [batch, num_outputs].

        `images` are pixel/255, float32 [batch, 784], [batch, 28, 28] or [batch, 1, 28, 28].
        """
        return self.activations(images)[-1]

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the output of each layer, [batch, width]: activated, the last one raw."""
        *hidden, last = self.layers
        activate = ACTIVATIONS[self.activation]
        outputs = [images.flatten(start_dim=1)]  # → [batch, 784]
        for layer in hidden:
            outputs.append(activate(layer(outputs[-1])))  # → [batch, width of the layer]
        outputs.append(last(outputs[-1]))  # → [batch, num_outputs]
        return outputs[1:]


class ImageInput(nn.Sequential):
    """`nn.Unflatten` and a module, called as the MLP is, with float32 [batch, 784]."""


def as_module(model: object) -> nn.Module:
    """Return a module, also of `FILE.py:NAME`, which runs the file: see `load_model`."""
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must be a torch.nn.Module, not {kind}")
    file, _, name = model.rpartition(":")
    path, content = as_path(file), dict[str, Any]()
    if path.suffix != ".py":
        raise UsageError(f"--model {model}: name a file and a class in it, as in net.py:CNN")
    sys.path.insert(0, str(path.parent.resolve()))  # for what the file imports from beside it
    try:
        content = runpy.run_path(str(path), run_name=path.stem)
        found = content[name]
        return as_module(found if isinstance(found, nn.Module) else found())
    except (Exception, SystemExit) as error:  # whatever the file does
        near = did_you_mean(name, content) if content and name not in content else ""
        reason = f"{type(error).__name__}: {one_line(error)}{near}"
        raise UsageError(f"--model {model}: {reason}") from error
    finally:
        sys.path.pop(0)


def unwrapped(model: nn.Module) -> nn.Module:
    return model[1] if isinstance(model, ImageInput) else model


@contextlib.contextmanager
def kept_in_place(module: nn.Module) -> Iterator[None]:
    device = _device(module)
    try:
        yield
    finally:
        module.to(device)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and all in it into evaluation mode; each is as it was on leaving."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


def as_network(module: nn.Module) -> tuple[nn.Module, int]:
    """Return any module as one that takes [batch, 784], and how many logits it returns.

    The module gets two black images in evaluation mode, as [2, 1, 28, 28], else [2, 784], else
    [2, 28, 28]. A UsageError if it takes none of them, or does not return [2, outputs].
    """
    if isinstance(module, MLP):
        return module, module.sizes[-1]
    name, reasons, device = type(module).__name__, [], _device(module)
    with evaluation_mode(module):
        for shape in _INPUT_SHAPES:
            network = ImageInput(nn.Unflatten(1, shape), module)
            try:
                with torch.no_grad():
                    logits: object = network(torch.zeros(2, INPUT_SIZE, device=device))
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                reasons.append(one_line(error))
                continue
            if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 2:
                num_outputs, sums = logits.shape[1], logits.sum(dim=1)
                if num_outputs > 1 and logits.min() >= 0 and (sums - 1).abs().max() < 1e-4:
                    advice = "leave its softmax out, since the loss applies softmax itself"
                    logger.warning(f"the outputs of {name} are probabilities: {advice}")
                return network, num_outputs
            kind = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            reasons.append(f"it returns {kind}")
    raise UsageError(
        f"{name} must map float32 [batch, 1, 28, 28] or [batch, 784] to logits [batch, outputs]; "
        f"given [2, 1, 28, 28]: {reasons[0]}"
    )


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
    batches = torch.split(images, 500)
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
    return type(model) is MLP and all(
        type(module) in (MLP, nn.Linear)
        and "forward" not in vars(module)
        and not any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
        for module in model.modules()
    )
