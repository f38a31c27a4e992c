"""Training images that stay on the device, served in batches by seeded index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mnist_ce.config import AugmentConfig
from mnist_ce.data.augment import apply_distortion, draw_coefficients
from mnist_ce.network.model import scale_pixels
from mnist_ce.system.device import derived_generator, use_threads


class DeviceLoader:
    """The images of a training set, in batches whose order is a function of (seed, epoch).

    The images, uint8 [n, 28, 28], and labels, int64 [n], stay on the device. The last batch of an
    epoch holds the rest; a rest of one image, too few for a BatchNorm, joins the batch before it.
    Epochs after `last_augmented_epoch` have no distortion.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        augment: AugmentConfig | None = None,
        last_augmented_epoch: int | None = None,
    ) -> None:
        self.images = images.flatten(start_dim=1)  # [n, 784]
        self.labels = labels
        num_full, rest = divmod(len(labels), batch_size)
        joins = rest == 1 and num_full > 0
        self.sizes = [batch_size] * (num_full - joins) + [batch_size * joins + rest] * (rest > 0)
        self.seed = seed
        self.augment = augment if augment is not None and augment.distorts else None
        self.last_augmented_epoch = last_augmented_epoch
        self.device = images.device

    def __len__(self) -> int:
        return len(self.sizes)

    def permutation(self, epoch: int) -> Tensor:
        """Return the order of the images in an epoch (counted from 1), int64 [n]."""
        generator = derived_generator(self.seed, "order", epoch)
        return torch.randperm(len(self.labels), generator=generator).to(self.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the indices of each batch of an epoch, int64 [batch], from batch `start` on."""
        yield from torch.split(self.permutation(epoch), self.sizes)[start:]

    def draw_distortion(self, num_images: int, step: int) -> Tensor | None:
        """Draw the distortions of the batch of a step, counted from 0 since the run began."""
        last = self.last_augmented_epoch
        if self.augment is None or (last is not None and step >= last * len(self)):
            return None
        with use_threads(1):  # torch's own would spin, and take a core from the fast step's workers
            return draw_coefficients(self.augment, num_images, seed=self.seed, step=step)

    def gather(
        self, indices: Tensor, distortion: Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return inputs, float32 [n, 784] (in `out`, if given), and labels, int64 [n].

        The images are distorted by their rows of `draw_distortion`.
        """
        inputs = scale_pixels(self.images.index_select(0, indices), out=out)
        if distortion is not None and self.augment is not None:
            distortion = distortion.to(self.device)
            inputs = apply_distortion(inputs, distortion, self.augment.elastic_grid, out)
        return inputs, self.labels.index_select(0, indices)
