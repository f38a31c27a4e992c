from __future__ import annotations

from typing import Any

import pytest
import torch

from mnist_ce.config import DataConfig, ObjectiveConfig
from mnist_ce.data.dataset import Dataset, load_splits, select_classes
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.splits import Split, split_validation
from mnist_ce.system.errors import UsageError


def numbered(labels: list[int]) -> Split:
    images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(len(labels))  # so that one sees where each went
    return Split(images, torch.tensor(labels))


@pytest.fixture
def letters() -> Dataset:
    train, test = numbered([2, 0, 1, 2, 3, 0]), numbered([3, 2, 1])
    return Dataset("kmnist", train, test, ("a", "b", "c", "d"), "digest")


def positions(split: Split) -> list[int]:
    return split.images[:, 0, 0].tolist()


def test_selected_classes_are_numbered_as_given(letters: Dataset) -> None:
    chosen = select_classes(letters, [3, 2])
    assert (chosen.name, chosen.digest, chosen.class_names) == ("kmnist", "digest", ("d", "c"))
    assert (chosen.train.labels.tolist(), positions(chosen.train)) == ([1, 1, 0], [0, 3, 4])
    assert (chosen.test.labels.tolist(), positions(chosen.test)) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([], "at least one"),
        ([4], "kmnist has no class 4; its classes are 0 to 3"),
        ([-1], "no class -1"),
        ([1, 0, 1], "class 1 is given twice"),
    ],
)
def test_classes_that_cannot_be_selected(letters: Dataset, classes: list[int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        select_classes(letters, classes)


def test_a_validation_split_is_a_partition_in_order_and_follows_from_its_seed_alone() -> None:
    train = numbered([i % 10 for i in range(100)])
    rest, validation = split_validation(train, 30, seed=5)
    assert (len(rest), len(validation)) == (70, 30)
    assert sorted(positions(rest) + positions(validation)) == list(range(100))
    for part in (rest, validation):
        assert positions(part) == sorted(positions(part))
        assert part.labels.tolist() == [position % 10 for position in positions(part)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert positions(split_validation(train, 30, seed=5)[1]) == positions(validation)
    assert torch.equal(torch.get_rng_state(), state)
    assert positions(split_validation(train, 30, seed=6)[1]) != positions(validation)


def test_sizes_of_the_validation_split() -> None:
    train = numbered([1, 2, 3])
    rest, validation = split_validation(train, 0, seed=0)
    assert rest is train  # not a copy
    assert validation.images.shape == (0, 28, 28)
    for size in (-1, 3, 4):
        with pytest.raises(UsageError, match=f"validation_size is {size}; with 3 training images"):
            split_validation(train, size, seed=0)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    images, labels = torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100)

    def order(seed: int, epoch: int) -> list[int]:
        batches = DeviceLoader(images, labels, batch_size=32, seed=seed)
        parts = list(batches.epoch(epoch))
        assert [len(part) for part in parts] == [32, 32, 32, 4]
        assert all(map(torch.equal, batches.epoch(epoch, start=2), parts[2:]))
        return torch.cat(parts).tolist()

    assert order(1, 1) == order(1, 1)
    assert sorted(order(1, 1)) == list(range(100))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_drawn_digits_join_the_training_images_alone(small_settings: dict[str, Any]) -> None:
    data = {"dataset": "synthetic", "dir": small_settings["data.dir"]}
    plain = load_splits(DataConfig(**data), ObjectiveConfig(), seed=0)
    mixed = load_splits(DataConfig(**data, drawn=200), ObjectiveConfig(), seed=0)
    assert (len(plain.train), len(mixed.train)) == (300, 500)
    assert torch.equal(mixed.train.images[:300], plain.train.images)
    assert mixed.train.labels[300:].bincount().tolist() == [20] * 10
    assert torch.equal(mixed.test.images, plain.test.images)
    assert mixed.digest == plain.digest
    chosen = DataConfig(**data, drawn=200, classes=(7, 1), validation_size=50)
    some = load_splits(chosen, ObjectiveConfig(), seed=0)
    assert len(some.train) + len(some.validation or ()) == 60 + 40
    assert set(some.train.labels.tolist()) == {0, 1}


def test_digits_are_not_drawn_for_other_classes(letters: Dataset, monkeypatch: Any) -> None:
    monkeypatch.setattr("mnist_ce.data.dataset.load_dataset", lambda *_, **__: letters)
    with pytest.raises(
        UsageError, match=r"data.drawn = 10, but the images of kmnist are no digits"
    ):
        load_splits(DataConfig(dataset="kmnist", drawn=10), ObjectiveConfig(), seed=0)
