from __future__ import annotations

from pathlib import Path

from mnist_ce import evaluate


def test_the_shipped_weights_get_9954_of_10000_test_images_right(mnist_dir: Path) -> None:
    report = evaluate("pretrained", data_dir=mnist_dir)
    assert (report.result.num_correct, report.result.num_examples) == (9_954, 10_000)
