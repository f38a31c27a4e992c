"""Modules, optimizers and data given from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stopping import stop_after
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from mnist_ce import evaluate, load_model, predict, train
from mnist_ce.data.dataset import custom_dataset
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.synthetic import generate
from mnist_ce.runs.checkpoint import load_tensors, save_tensors, weights_sha256
from mnist_ce.runs.groups import group_runs
from mnist_ce.system.errors import (
    CheckpointError,
    DataError,
    RunError,
    StoppedError,
    TrainingError,
    UsageError,
)
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.steps import OptimizerFactory

pytestmark = pytest.mark.usefixtures("one_thread")
Set = tuple[Tensor, Tensor]


class CNN(nn.Sequential):
    """A small network with buffers and random numbers of its own."""

    def __init__(self, seed: int = 0, outputs: int = 10, width: int = 4) -> None:
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 5), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(4)]
        layers += [nn.Flatten(), nn.Dropout(0.3), nn.Linear(36 * width, outputs)]
        super().__init__(*layers)


def amsgrad(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)


@pytest.fixture(scope="module")
def data() -> tuple[Set, Set]:
    one, other = generate(120, seed=1), generate(60, seed=2)
    return (one.images, one.labels), (other.images, other.labels)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    batches = {"train.epochs": 2, "train.batch_size": 30, "run.plots": False}
    return {"run.output": str(tmp_path), **batches}


CASES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "module and optimizer": ({}, lambda: {"model": CNN(), "optimizer": amsgrad}),
    "everything": (
        {
            "average.decay": 0.9,
            "schedule.kind": "one-cycle",
            "augment.rotation_degrees": 9.0,
            "data.validation_size": 20,
        },
        lambda: {"model": CNN(), "optimizer": torch.optim.RMSprop},
    ),
    "adam": ({"optimizer.name": "adam", "model.hidden": [8]}, dict),
    "adamw": ({"optimizer.name": "adamw", "optimizer.weight_decay": 0.1}, lambda: {"model": CNN()}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_pieces_equals_one_in_one_go(
    name: str, settings: dict[str, Any], data: tuple[Set, Set], tmp_path: Path
) -> None:
    more, custom = CASES[name]
    whole = train(None, settings | more, data=data, **custom())
    with pytest.raises(StoppedError):
        train(None, settings | more | {"run.name": "a"}, data=data, **custom(), **stop_after(2))
    output = {"run.output": str(tmp_path)}
    with pytest.raises(StoppedError):
        train(None, output, resume="a", data=data, **custom(), **stop_after(3))
    torch.rand(5)  # other random numbers in between
    given = custom()
    if "model" in given:
        given["model"] = CNN(seed=9)  # its own initial weights do not matter
    pieces = train(None, output, resume="a", data=data, **given)
    assert pieces.record.weights_sha256 == whole.record.weights_sha256
    for ours, theirs in zip(pieces.rows, whole.rows, strict=True):
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["test_loss"] == theirs["test_loss"]


@pytest.fixture
def run(settings: dict[str, Any], data: tuple[Set, Set]) -> TrainResult:
    return train(None, settings | {"run.name": "own"}, model=CNN(), optimizer=amsgrad, data=data)


def test_the_module_is_trained_evaluated_loaded_and_used(
    run: TrainResult, data: tuple[Set, Set]
) -> None:
    assert isinstance(run.model, CNN)
    assert run.record.custom is not None
    assert run.record.custom["model"].endswith("test_custom.CNN")
    assert run.record.weights_sha256 == weights_sha256(run.model.state_dict())
    assert run.rows[0]["learning_rate"] == 0.01
    run.model.train()
    found = evaluate(run.model, data=data[1]).result
    assert found.num_correct == run.record.test_correct
    assert run.model.training  # as it was
    loaded = load_model(run.run.path, model=CNN(seed=4))
    assert loaded.weights_sha256 == run.record.weights_sha256
    assert evaluate(loaded, data=data).result.num_correct == run.record.test_correct
    images = data[1][0]
    for given in ({"model": run.model}, {"model": CNN(), "checkpoint": run.run.path}):
        labels = [p.label for p in predict(images, min_confidence=0.0, **given)]
        assert labels == found.predictions.tolist()


def test_what_was_given_must_be_given_again(
    run: TrainResult, data: tuple[Set, Set], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"weights of .*CNN, .*load_model\(.*model=CNN\(\)\)"):
        evaluate(run.run.path)
    with pytest.raises(CheckpointError, match=r"does not fit Linear: .*Missing key"):
        load_model(run.run.path, model=nn.Linear(784, 10))
    with pytest.raises(UsageError, match=r"own was trained on data given from Python"):
        evaluate(load_model(run.run.path, model=CNN()))
    output: dict[str, Any] = {"run.output": str(tmp_path), "train.epochs": 3}
    with pytest.raises(
        UsageError, match=r"with model=.* optimizer=.*amsgrad, .* given from Python; give"
    ):
        train(None, output, resume="own", model=CNN(), data=data)
    given: dict[str, Any] = {"model": CNN(), "optimizer": amsgrad}
    with pytest.raises(RunError, match="was trained on other data"):
        train(None, output, resume="own", data=data[0], **given)
    assert train(None, output, resume="own", data=data, **given).record.epochs_done == 3


def test_what_was_given_is_part_of_what_defines_a_run(
    settings: dict[str, Any], data: object
) -> None:
    def sgd(learning_rate: float) -> OptimizerFactory:
        return lambda parameters: torch.optim.SGD(parameters, lr=learning_rate)

    given: list[dict[str, Any]] = [
        {"model": CNN()},
        {"model": CNN()},
        {"model": CNN(width=8)},
        {"optimizer": torch.optim.RMSprop},
        {"optimizer": sgd(0.1)},
        {"optimizer": sgd(0.2)},
    ]
    settings |= {"train.epochs": 1}
    records = [
        train(None, settings | {"train.seed": seed}, data=data, **each).record
        for seed, each in enumerate(given)
    ]
    groups = group_runs((str(record.name), record) for record in records)
    first, *others = (str(record.name) for record in records)
    assert [group.names for group in groups] == [(first, others[0]), *((n,) for n in others[1:])]
    assert len({group.label for group in groups}) == len(groups)
    where = {"run.output": settings["run.output"], "train.epochs": 2}
    with pytest.raises(RunError, match=r"custom.optimizer is .*sgd.* there and .*sgd.* here"):
        train(None, where, resume=records[-1].name, optimizer=sgd(0.1), data=data)


def test_a_foreign_state_of_the_optimizer_is_refused(
    run: TrainResult, data: tuple[Set, Set], tmp_path: Path
) -> None:
    good = load_tensors(run.run.resume_path)
    huge = {"state": {0: {"exp_avg": torch.zeros(1).expand(2**40)}}, "param_groups": []}
    for optimizer in ({}, {"state": {}, "param_groups": [{"params": [0]}]}, huge, 3):
        save_tensors(run.run.resume_path, good | {"step": good["step"] | {"optimizer": optimizer}})
        with pytest.raises((RunError, CheckpointError), match=r"does not belong|has a tensor"):
            train(
                None,
                {"run.output": str(tmp_path), "train.epochs": 3},
                resume="own",
                model=CNN(),
                optimizer=amsgrad,
                data=data,
            )


def test_the_advice_on_a_diverging_run_names_the_optimizer_given(
    settings: dict[str, Any], data: object
) -> None:
    def too_fast(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e30)

    with pytest.raises(TrainingError, match=r"below 1e\+30, such as"):
        train(None, settings, optimizer=too_fast, data=data)


@pytest.mark.parametrize(
    ("settings_", "arguments", "error", "message"),
    [
        ({}, {"model": CNN}, TypeError, "model must be a torch.nn.Module, not the class CNN"),
        ({}, {"model": CNN(outputs=7)}, UsageError, "CNN has logits for 7 classes, .* needs 10"),
        ({}, {"model": nn.Conv2d(1, 2, 3)}, UsageError, r"must map .*it returns \[2, 2, 26, 26\]"),
        ({}, {"optimizer": "adam"}, TypeError, "optimizer must be a function of the parameters"),
        ({}, {"optimizer": lambda _: 3}, TypeError, "must return a torch.optim.Optimizer, not a"),
        ({"train.step": "fast"}, {"model": CNN()}, UsageError, "'fast' is for the MLP and SGD"),
        ({"train.step": "fast", "optimizer.name": "adam"}, {}, UsageError, "for the MLP and SGD"),
        ({"model.hidden": [9]}, {"model": CNN()}, UsageError, "no effect beside model="),
        ({"optimizer.momentum": 0.9}, {"optimizer": amsgrad}, UsageError, "beside optimizer="),
        ({}, {"data": 3}, TypeError, "data must be .images, labels.*, not int"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any],
    data: object,
    settings_: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(None, settings | settings_, **{"data": data, **arguments})
    assert not list(Path(settings["run.output"]).iterdir())


def test_images_of_every_usual_type_make_the_same_dataset(data: tuple[Set, Set]) -> None:
    images, labels = data[0]
    expected = custom_dataset((data[0], data[1]))
    assert (len(expected.train), len(expected.test)) == (120, 60)
    assert expected.class_names == tuple("0123456789")
    scaled = images.float() / 255
    for given in (
        (images.numpy(), labels.numpy()),
        (scaled[:, None], labels.int()),
        (scaled.flatten(1).double().numpy(), labels.tolist()),
        (images.float(), labels),
        TensorDataset(scaled[:, None], labels),
    ):
        assert custom_dataset((given, data[1])).digest == expected.digest
    alone = custom_dataset(data[0])
    assert (len(alone.train), len(alone.test)) == (100, 20)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 28, 28)) - 0.4, [0, 1, 2], r"not normalised .* from -0.4 to -0.4"),
        (np.zeros((3, 28, 28)), [0, 1], r"labels of shape \[2\], expected \[3\]"),
        (np.zeros((0, 28, 28)), [], "there is no image"),
    ],
)
def test_other_images_and_labels_are_refused(images: object, labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        custom_dataset((images, labels))


class Upright(TorchDataset[object]):
    """Keeps its images transposed, and turns them in `__getitem__`."""

    def __init__(self, images: Tensor, labels: Tensor, form: str = "pair") -> None:
        self.data, self.targets, self.form = images.transpose(1, 2), labels, form

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> object:
        image, label = self.data[index].T, self.targets[index]
        if self.form == "pair":
            return image, label
        if self.form == "dict":
            return {"image": Image.fromarray(image.numpy()), "label": int(label)}
        return image if self.form == "image" else {"picture": image, "label": label}


@pytest.mark.parametrize("form", ["pair", "dict"])
def test_a_dataset_is_asked_for_its_items(form: str, data: tuple[Set, Set]) -> None:
    expected = custom_dataset(data)
    given = tuple(Upright(*one, form=form) for one in data)
    assert custom_dataset(given).digest == expected.digest
    loaders = tuple(DataLoader(one, batch_size=7) for one in given)
    assert custom_dataset(loaders).digest == expected.digest


@pytest.mark.parametrize("form", ["image", "other dict"])
def test_other_items_are_named(form: str, data: tuple[Set, Set]) -> None:
    with pytest.raises(DataError, match="an item must be an image, all of one size, and its"):
        custom_dataset(Upright(*data[0], form=form))


class Table(nn.Sequential):
    def __init__(self) -> None:
        layers = (nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
        super().__init__(*layers)


class Sharp(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "this optimizer requires a closure"


def test_a_rest_of_one_image_joins_the_batch_before(
    settings: dict[str, Any], data: tuple[Set, Set]
) -> None:
    images, labels = data[0]
    for model in (Table(), None):
        short = (images[:61], labels[:61]), data[1]
        result = train(None, settings | {"train.epochs": 1}, data=short, model=model)
        assert result.record.epochs_done == 1
    sizes = {n: DeviceLoader(images[:n], labels[:n], batch_size=30, seed=0).sizes for n in (1, 61)}
    assert sizes == {1: [1], 61: [30, 31]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"optimizer": torch.optim.LBFGS}, "LBFGS needs a closure"),
        (lambda: {"optimizer": lambda weights: Sharp(weights, lr=0.1)}, "Sharp needs a closure"),
        (lambda: {"model": CNN().requires_grad_(False)}, "CNN has no weights to train"),
        (lambda: {"model": nn.Flatten()}, "Flatten has logits for 784 classes|no weights"),
        (
            lambda: {"model": Table(), "settings": {"train.batch_size": 1}},
            "Table has BatchNorm1d, which needs two images: set --batch-size 2",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(
    settings: dict[str, Any], data: object, make: Callable[[], dict[str, Any]], message: str
) -> None:
    given = make()
    settings |= given.pop("settings", {})
    with pytest.raises(UsageError, match=message):
        train(None, settings, data=data, **given)
    assert not list(Path(settings["run.output"]).iterdir())
