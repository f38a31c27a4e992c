"""The network: a multi-layer perceptron that ends in raw logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mnist_ce.network import HIDDEN, INPUT_SIZE


class MLP(nn.Module):
    """Linear layers `l1`, `l2`, …, with a ReLU between them and none at the end.

    There is no softmax: the cross-entropy takes raw logits and applies log-softmax itself, in a
    form that cannot overflow. A second softmax would flatten the gradients.

    `hidden` are the widths of the hidden layers; `num_outputs` is 1 for a yes/no network.
    """

    def __init__(self, hidden: Sequence[int] = HIDDEN, num_outputs: int = 10) -> None:
        super().__init__()
        self.sizes = (INPUT_SIZE, *hidden, num_outputs)
        for number, (inputs, outputs) in enumerate(pairwise(self.sizes), start=1):
            self.add_module(f"l{number}", nn.Linear(inputs, outputs))

    @property
    def layers(self) -> list[nn.Linear]:
        """The Linear layers in order, from l1 on."""
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 [batch, num_outputs].

        `images` are pixel/255, float32 [batch, 784], [batch, 28, 28] or [batch, 1, 28, 28].
        """
        *hidden, last = self.layers
        activations = images.flatten(start_dim=1)  # → [batch, 784]
        for layer in hidden:
            activations = torch.relu(layer(activations))  # → [batch, width of the layer]
        logits: Tensor = last(activations)  # → [batch, num_outputs]
        return logits
