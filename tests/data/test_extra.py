from __future__ import annotations

import numpy as np
import pytest
import torch

from mnist_ce.config import DataConfig, ObjectiveConfig
from mnist_ce.data.dataset import load_splits
from mnist_ce.data.extra import add_thin_copies, add_upstroke, add_upstrokes, thin_copy
from mnist_ce.data.splits import DIGITS, Dataset, Split
from mnist_ce.data.synthetic import generate
from mnist_ce.reader.mnist_format import fit_glyph
from mnist_ce.system.errors import UsageError


def upright(width: int = 3) -> np.ndarray:
    ink = np.zeros((40, 40), np.float32)
    ink[5:35, 20 : 20 + width] = 1
    return fit_glyph(ink)


@pytest.mark.parametrize("seed", range(5))
def test_an_upstroke_goes_down_and_left_from_the_top(seed: int) -> None:
    one = upright()
    changed = add_upstroke(one, np.random.default_rng(seed))
    assert (changed.shape, changed.dtype) == (one.shape, one.dtype)

    def mean_width(image: np.ndarray, rows: slice) -> float:
        inked = np.flatnonzero(image.max(axis=1) > 127)
        return float((image[inked[0] : inked[-1] + 1][rows] > 127).sum(axis=1).mean())

    upper, lower = slice(0, 10), slice(-6, None)
    assert mean_width(changed, upper) > 1.2 * mean_width(one, upper)
    assert mean_width(changed, lower) <= mean_width(one, lower) + 1  # the stem is as it was
    stem = np.flatnonzero(changed[18:23].max(axis=0) > 127)
    columns = np.flatnonzero(changed.max(axis=0) > 127)
    assert columns[0] < stem[0]  # the upstroke is to the left,
    assert columns[-1] <= stem[-1] + 1  # and nothing to the right
    for other in (upright(width=20), np.zeros((28, 28), np.uint8)):  # no single strokes
        assert (add_upstroke(other, np.random.default_rng(seed)) == other).all()


def test_only_a_fraction_of_the_ones_gets_upstrokes() -> None:
    images = torch.from_numpy(np.stack([upright()] * 400))
    split = Split(images.clone(), torch.arange(400) % 2)
    changed = add_upstrokes(split, 1, 0.25, seed=0)
    assert torch.equal(split.images, images)  # the data stays
    differs = (changed.images != images).flatten(1).any(dim=1)
    assert not differs[::2].any()
    assert 0.15 < differs[1::2].float().mean() < 0.35
    assert torch.equal(changed.images, add_upstrokes(split, 1, 0.25, seed=0).images)
    assert not torch.equal(changed.images, add_upstrokes(split, 1, 0.25, seed=1).images)


def test_a_thin_copy_has_thinner_strokes_and_with_few_pixels_no_finer_shapes() -> None:
    images = generate(40, seed=5).images.numpy()
    thinned = np.stack([thin_copy(image, 1.7) for image in images])
    ink, thin_ink = (batch.sum(axis=(1, 2), dtype=int) for batch in (images, thinned))
    assert (thin_ink < 1.05 * ink).all()
    assert thin_ink.mean() < 0.8 * ink.mean()
    assert not thin_copy(np.zeros((28, 28), np.uint8), 1.7).any()
    ring = np.zeros((28, 28), np.uint8)
    ring[4:24, 10:17] = 255
    ring[6:22, 12:15] = 0
    hollow, filled = thin_copy(ring, 2.3), thin_copy(ring, 2.3, 6)
    assert hollow[14, 14:16].max() < 40
    assert filled[14, 14:16].min() > 200


def test_a_fraction_of_the_images_gets_thin_copies() -> None:
    split = generate(60, seed=5)
    more, again, other = (add_thin_copies(split, 0.5, seed) for seed in (3, 3, 4))
    assert len(more) == 90
    assert torch.equal(more.images[:60], split.images)
    assert torch.equal(more.images, again.images)
    assert torch.equal(more.labels, again.labels)
    assert not torch.equal(more.images, other.images)
    assert len(add_thin_copies(split[:0], 1.0, seed=3)) == 0


def keys(split: Split | None) -> list[bytes]:
    return [] if split is None else [image.numpy().tobytes() for image in split.images]


def test_extras_follow_the_validation_split_but_for_synthetic_digits() -> None:
    digits, test = generate(300, seed=1), generate(100, seed=2)
    dataset = Dataset("mnist", digits, test, DIGITS)

    def splits(**data: float) -> tuple[list[bytes], list[bytes]]:
        config = DataConfig.model_validate({"validation_size": 50} | data)
        made = load_splits(config, ObjectiveConfig(), 0, dataset, to_train=True)
        assert made.test.images is test.images or torch.equal(made.test.images, test.images)
        assert made.digest == dataset.digest
        return keys(made.train), keys(made.validation)

    train, validation = splits()
    assert (len(train), len(validation)) == (250, 50)
    both, unchanged = splits(upstrokes=0.9, thin_copies=0.5)
    assert unchanged == validation
    assert len(both) == 375
    assert 10 < len({*train} - {*both}) <= 25  # the ones that have upstrokes
    assert not {*validation} & {*both}
    more, mixed = splits(num_synthetic=200)
    assert (len(more), len(mixed)) == (450, 50)
    assert {*more, *mixed} > {*train, *validation}
    assert 5 < len({*mixed} - {*train, *validation}) < 40


def test_extras_are_relabelled_and_refused_where_they_do_not_fit() -> None:
    digits = generate(300, seed=1)
    dataset = Dataset("mnist", digits, digits, DIGITS, mnist=generate(100, seed=2))

    def labels(dataset: Dataset = dataset, **data: object) -> list[int]:
        config = DataConfig.model_validate(data)
        made = load_splits(config, ObjectiveConfig(), 0, dataset, to_train=True)
        return made.train.labels.bincount().tolist()

    assert labels(classes=[7, 1], num_synthetic=200, upstrokes=0.5) == [10 + 50, 10 + 50]
    with pytest.raises(UsageError, match=r"data.upstrokes = 0.5, but no class is called 1"):
        labels(classes=[0, 2], upstrokes=0.5)
    letters = Dataset("kmnist", digits, digits, ("o", *DIGITS[1:]))
    with pytest.raises(UsageError, match=r"data.num_synthetic = 10, but the images of kmnist are"):
        labels(letters, num_synthetic=10)


def test_repeated_images_and_copies_are_trained_on_and_evaluated_once() -> None:
    own, mnist = generate(20, seed=1), generate(600, seed=2)
    dataset = Dataset("mnist+folder:x", own, own, DIGITS, mnist)
    config = DataConfig(upstrokes=1.0, thin_copies=0.5)
    trained, evaluated = (
        load_splits(config, ObjectiveConfig(), 0, dataset, to_train=to_train)
        for to_train in (True, False)
    )
    assert len(trained.train) == 1.5 * (600 + 10 * 20)  # a quarter of the whole is one's own
    once = evaluated.split("train")
    assert torch.equal(once.images, torch.cat([mnist.images, own.images]))
    assert torch.equal(once.labels, torch.cat([mnist.labels, own.labels]))
