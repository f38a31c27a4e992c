from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.config import DataConfig, ObjectiveConfig
from mnist_ce.data.dataset import custom_dataset, load_splits
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.splits import Dataset, Split, split_validation
from mnist_ce.evaluation.comparison import compare
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.training.callbacks import TrainResult


def numbered(labels: list[int]) -> Split:
    images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(len(labels))  # so that one sees where each went
    return Split(images, torch.tensor(labels))


@pytest.fixture
def letters() -> Dataset:
    train, test = numbered([2, 0, 1, 2, 3, 0]), numbered([3, 2, 1])
    return Dataset("kmnist", train, test, ("a", "b", "c", "d"))


def positions(split: Split) -> list[int]:
    return split.images[:, 0, 0].tolist()


def test_selected_classes_are_numbered_as_given(letters: Dataset) -> None:
    chosen = load_splits(DataConfig(classes=(3, 2)), ObjectiveConfig(), 0, letters)
    assert (chosen.dataset, chosen.class_names) == ("kmnist", ("d", "c"))
    assert chosen.digest == letters.digest  # of all classes
    assert (chosen.train.labels.tolist(), positions(chosen.train)) == ([1, 1, 0], [0, 3, 4])
    assert (chosen.test.labels.tolist(), positions(chosen.test)) == ([0, 1], [0, 1])


def test_lists_of_different_lengths_are_no_images() -> None:
    with pytest.raises(DataError, match=r"^data: .*inhomogeneous shape"):
        custom_dataset(([[1], [2, 3]], [1, 2]))


def test_frames_of_pandas_are_images_and_labels() -> None:
    pandas = pytest.importorskip("pandas")
    labels = [n % 10 for n in range(50)]
    split = numbered(labels)
    frame = pandas.DataFrame(split.images.flatten(1).numpy().astype(float))
    classes = pandas.Series(map(str, labels), dtype="category")
    for given in ((frame, classes), (frame, classes.to_frame())):
        made = custom_dataset(given).whole
        assert made is not None
        assert torch.equal(made.images, split.images)
        assert torch.equal(made.labels, split.labels)


def test_a_binary_objective_asks_for_one_of_the_classes(letters: Dataset) -> None:
    binary = ObjectiveConfig(kind="binary", positive=2)
    asked = load_splits(DataConfig(classes=(3, 2)), binary, 0, letters)
    assert (asked.class_names, asked.num_outputs) == (("not c", "c"), 1)
    assert (asked.train.labels.tolist(), positions(asked.train)) == ([1, 1, 0], [0, 3, 4])


@pytest.mark.parametrize(
    ("data", "objective", "reason"),
    [
        ({"classes": (1, 4)}, {}, "kmnist has no class 4; its classes are 0 to 3"),
        ({}, {"kind": "binary", "positive": 7}, "objective.positive = 7 is not among the classes"),
        ({"classes": (0, 1)}, {"kind": "binary", "positive": 2}, "positive = 2 is not among"),
        ({"validation_size": 6}, {}, "must be from 0 to 5"),
    ],
)
def test_what_does_not_fit_the_dataset(
    letters: Dataset, data: dict[str, Any], objective: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_splits(DataConfig(**data), ObjectiveConfig(**objective), 0, letters)


def test_classes_that_leave_no_image_are_named() -> None:
    dataset = Dataset("x", numbered([0, 0, 1, 2]), numbered([0, 1, 3]), ("a", "b", "c", "d"))
    for classes, reason in (
        ((3,), "data.classes: x has no training image of d"),
        ((2,), "data.classes: x has no test image of c"),
    ):
        with pytest.raises(UsageError, match=reason):
            load_splits(DataConfig(classes=classes), ObjectiveConfig(), 0, dataset)


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
    assert split_validation(train, 0, seed=0)[0] is train  # not a copy
    for size in (-1, 100):
        with pytest.raises(UsageError, match=f"validation_size is {size}; with 100 training"):
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


def test_an_evaluation_takes_the_images_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_small: Callable[..., TrainResult]
) -> None:
    monkeypatch.setattr(
        "mnist_ce.data.dataset.generate", lambda num, *_: numbered([n % 10 for n in range(num)])
    )
    sizes = {"data__num_synthetic": 200, "data__validation_size": 1_100}
    train_small("a", **sizes, data__thin_copies=0.5)
    few = (torch.zeros(10, 28, 28), torch.arange(10))
    for split, data, num_images in (
        ("test", None, 1_000),
        ("train", None, 100),
        ("validation", None, 1_100),
        ("test", few, 10),
        ("train", few, 10),
    ):
        found = evaluate("a", split=split, data=data, output=tmp_path)
        assert found.result.num_examples == num_images
    assert len(compare("a", "a", data=few, output=tmp_path).labels) == 10


@pytest.mark.parametrize(
    "settings", [{"data__classes": [3, 7]}, {"objective__kind": "binary", "objective__positive": 7}]
)
def test_a_few_images_may_lack_a_class(
    tmp_path: Path, train_small: Callable[..., TrainResult], settings: dict[str, Any]
) -> None:
    train_small("a", train__epochs=1, **settings)
    found = evaluate("a", data=(torch.zeros(4, 28, 28), [3] * 4), output=tmp_path)
    assert sum(item.count for item in found.per_class) == found.result.num_examples == 4
