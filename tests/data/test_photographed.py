"""Copies of training images as the reader gets them from photographs."""

from __future__ import annotations

import numpy as np
import torch

from mnist_ce.data.photographed import add_photographed, as_photographed
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic.generate import generate


def test_strokes_are_thinned_and_never_thickened() -> None:
    images = generate(40, seed=5).images.numpy()
    for image in images:
        thinned = as_photographed(image, 1.7)
        assert thinned.shape == image.shape
        assert thinned.sum(dtype=int) < 1.05 * image.sum()
    assert np.mean(
        [as_photographed(image, 1.7).sum() for image in images]
    ) < 0.8 * images.sum() / len(images)
    assert not as_photographed(np.zeros((28, 28), np.uint8), 1.7).any()


def test_a_share_of_the_images_is_added_again() -> None:
    split = generate(60, seed=5)
    more = add_photographed(split, 0.5, seed=3)
    assert len(more) == 90
    assert torch.equal(more.images[:60], split.images)
    again = add_photographed(split, 0.5, seed=3)
    assert torch.equal(more.images, again.images)
    assert torch.equal(more.labels, again.labels)
    assert not torch.equal(more.images, add_photographed(split, 0.5, seed=4).images)
    assert len(add_photographed(Split(split.images[:0], split.labels[:0]), 1.0, seed=3)) == 0


def test_few_pixels_cost_the_finer_shapes() -> None:
    """A narrow ring is hollow at twenty pixels, and no longer at six."""
    ring = np.zeros((28, 28), np.uint8)
    ring[4:24, 10:17] = 255
    ring[6:22, 12:15] = 0
    hollow, filled = as_photographed(ring, 2.3), as_photographed(ring, 2.3, 6)
    assert hollow[14, 14:16].max() < 40
    assert filled[14, 14:16].min() > 200
