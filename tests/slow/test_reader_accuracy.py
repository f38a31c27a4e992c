"""Accuracy of the shipped weights and the reader on hard images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from generators import hard_images_a
from mnist_ce import predict
from mnist_ce.data.dataset import load_dataset

IMAGES_PER_KIND = 3


@pytest.mark.slow
def test_hard_images_are_read(mnist_dir: Path) -> None:
    """The shipped weights were trained on all training images, so the digits are test images."""
    test = load_dataset("mnist", mnist_dir).test
    accuracies = {}
    for number, (kind, draw) in enumerate(hard_images_a.KINDS.items()):
        chosen = range(number * IMAGES_PER_KIND, (number + 1) * IMAGES_PER_KIND)
        images = [draw(test.images[i].numpy(), np.random.default_rng(i)) for i in chosen]
        predictions = predict(images, checkpoint="pretrained")
        labels = [p.label for p in predictions]
        accuracies[kind] = np.mean([labels[k] == test.labels[i] for k, i in enumerate(chosen)])
    mean = np.mean(list(accuracies.values()))
    assert mean >= 0.95, {kind: value for kind, value in accuracies.items() if value < 1}
