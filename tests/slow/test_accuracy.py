"""Accuracy of the classic recipe on MNIST, and of the shipped weights on drawn and hard images."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from generators import handwriting_styles, hard_images_a
from mnist_ce import predict, train
from mnist_ce.data.dataset import load_dataset

IMAGES_PER_KIND = 3
IMAGES_PER_STYLE = 50


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["mnist", "world"])
def test_hard_images_are_read(mnist_dir: Path, weights: str) -> None:
    """The shipped weights were trained on all training images, so the digits are test images."""
    test = load_dataset("mnist", mnist_dir).test
    accuracies = {}
    for number, (kind, draw) in enumerate(hard_images_a.KINDS.items()):
        chosen = range(number * IMAGES_PER_KIND, (number + 1) * IMAGES_PER_KIND)
        images = [draw(test.images[i].numpy(), np.random.default_rng(i)) for i in chosen]
        predictions = predict(images, checkpoint=weights)
        labels = [p.label for p in predictions]
        accuracies[kind] = np.mean([labels[k] == test.labels[i] for k, i in enumerate(chosen)])
    mean = np.mean(list(accuracies.values()))
    assert mean >= 0.95, {kind: value for kind, value in accuracies.items() if value < 1}


@pytest.mark.slow
@pytest.mark.parametrize("style", handwriting_styles.STYLES)
def test_every_hand_is_read(style: str) -> None:
    pens = itertools.islice(itertools.cycle(handwriting_styles.PENS), IMAGES_PER_STYLE)
    images = [
        handwriting_styles.draw(style, pen, np.random.default_rng([7, i]))
        for i, pen in enumerate(pens)
    ]
    labels = [prediction.label for prediction in predict(images)]
    assert labels.count(int(style[0])) >= 0.98 * IMAGES_PER_STYLE, labels


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_classic_recipe_is_as_accurate_as_stated(
    mnist_dir: Path, tmp_path: Path, seed: int
) -> None:
    settings = {"data.dir": str(mnist_dir), "data.dataset": "mnist", "train.seed": seed}
    result = train(None, {**settings, "run.output": str(tmp_path)})
    assert 0.962 <= result.record["test_accuracy"] <= 0.974
