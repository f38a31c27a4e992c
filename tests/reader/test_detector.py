"""The shipped weights, and the detector of what is no digit."""

from __future__ import annotations

import math
from pathlib import Path

from mnist_ce import evaluate
from mnist_ce.data.dataset import load_dataset
from mnist_ce.reader.detector import MIN_QUALITY, adjusted_threshold, load_detector


def test_low_quality_raises_the_threshold() -> None:
    assert adjusted_threshold(-1.5, 1.0) == adjusted_threshold(-1.5, MIN_QUALITY) == -1.5
    thresholds = [adjusted_threshold(-1.5, quality) for quality in (0.5, 0.3, 0.1, 0.0)]
    assert thresholds == sorted(set(thresholds))
    assert math.isfinite(thresholds[-1])


def test_at_most_one_percent_of_the_test_digits_of_mnist_are_rejected(mnist_dir: Path) -> None:
    images = load_dataset("mnist", mnist_dir).test.images.numpy()
    detector = load_detector()
    rejected = detector.scores(images) < detector.threshold
    assert 0 < rejected.mean() <= 0.01


def test_the_shipped_weights_get_9954_of_10000_test_images_right(mnist_dir: Path) -> None:
    report = evaluate("pretrained", data_dir=mnist_dir)
    assert (report.result.num_correct, report.result.num_examples) == (9_954, 10_000)
