"""The teacher: a small convolutional network whose probabilities the MLP can learn from.

It is trained by the run that uses it, and then says for each distorted image what the MLP's
targets are (knowledge distillation: Hinton, Vinyals and Dean 2015; a target computed anew for each
distorted image: Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and
consistent"). Strides do the work of pooling in a third of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["Teacher"]

SIDE = 28
# (outputs, kernel, stride) of each convolution
CONVOLUTIONS = ((24, 5, 2), (24, 3, 1), (48, 3, 2), (48, 3, 1), (64, 3, 2))
LAST_SIDE = 4  # of the last maps: 28 → 14 → 7 → 4


class Teacher(nn.Module):
    """Five convolutions, normalised over the batch, and one linear layer; logits, no softmax.

    Args:
        num_outputs: Classes.
        generator: Makes the initial weights; None: torch's own.
    """

    def __init__(self, num_outputs: int = 10, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        inputs = 1
        for outputs, kernel, stride in CONVOLUTIONS:
            convolution = nn.Conv2d(
                inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
            )
            # He et al. 2015, for ReLU
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
            self.convolutions.append(convolution)
            self.norms.append(nn.BatchNorm2d(outputs, momentum=None))  # None: the plain mean
            inputs = outputs
        self.linear = nn.Linear(inputs * LAST_SIDE**2, num_outputs)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 [batch, 784] in [0, 1] → [batch, classes]."""
        maps = images.view(-1, 1, SIDE, SIDE)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = torch.relu(norm(convolution(maps)))
        logits: Tensor = self.linear(maps.flatten(start_dim=1))
        return logits

    @torch.no_grad()
    def settled(self, batches: Iterable[Tensor]) -> Teacher:
        """Return a copy whose answer for an image no longer depends on the rest of its batch.

        Means and variances are taken over the batches given, float32 [batch, 784] each, with the
        weights as they are now, and become part of the convolutions.
        """
        settled = copy.deepcopy(self)
        settled.train()
        for norm in settled.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            norm.reset_running_stats()
        for images in batches:
            settled(images)
        settled.eval()
        for number, norm in enumerate(settled.norms):
            convolution = settled.convolutions[number]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            settled.convolutions[number] = fuse_conv_bn_eval(convolution, norm)
            settled.norms[number] = nn.Identity()
        return settled

    @torch.no_grad()  # not inference mode: autograd must be able to keep the answer
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, float32 [batch, 784] → [batch, classes]."""
        return self.forward(images).softmax(dim=1)
