"""Accuracy on the real MNIST: of the classic recipe, and of the shipped weights on hard images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from generators import hard_images_a
from mnist_ce import predict, train
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_classic_recipe_is_as_accurate_as_stated(
    mnist_dir: Path, tmp_path: Path, seed: int
) -> None:
    settings = {"data.dir": str(mnist_dir), "data.dataset": "mnist", "train.seed": seed}
    result = train(None, {**settings, "run.output": str(tmp_path)})
    assert 0.962 <= result.record["test_accuracy"] <= 0.974
