"""The yes/no network, subsets of classes and other widths, from training to predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sklearn_metrics
from torch import nn

from mnist_ce import load_model
from mnist_ce.cli import main
from mnist_ce.config import resolve_config
from mnist_ce.data.splits import Dataset, Split
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.evaluation.metrics import binary_report, confusion_matrix
from mnist_ce.network.objective import Binary
from mnist_ce.training.trainer import train

BINARY = "objective.kind='binary'"
OUTCOMES = ("true_negatives", "false_positives", "false_negatives", "true_positives")


@given(
    st.lists(
        st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]), st.booleans()), min_size=2
    ).filter(lambda pairs: len({label for _, label in pairs}) == 2)
)
@settings(deadline=None, max_examples=100)
def test_the_figures_equal_scikit_learns_with_many_ties(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = (torch.tensor(values) for values in zip(*pairs, strict=True))
    labels, predicted = labels.long(), (scores > 0).long()
    found = vars(binary_report(scores, labels, confusion_matrix(predicted, labels, 2)))
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=[0, 1]).ravel()
    rates = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, average="binary", zero_division=0
    )
    expected = {
        "roc_auc": sklearn_metrics.roc_auc_score(labels, scores),
        "average_precision": sklearn_metrics.average_precision_score(labels, scores),
        **dict(zip(("precision", "recall", "f1"), rates, strict=False)),
        **dict(zip(OUTCOMES, matrix, strict=True)),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize("label", [0, 1])
def test_a_missing_class_leaves_what_needs_it_empty(label: int) -> None:
    labels = torch.full((4,), label)
    scores = torch.tensor([1.0, -1.0, 2.0, 0.5])
    confusion = confusion_matrix((scores > 0).long(), labels, 2)
    document = binary_report(scores, labels, confusion).to_dict()
    assert document["roc_auc"] is None
    assert (document["average_precision"] is None) == (label == 0)
    json.dumps(document, allow_nan=False)


@pytest.fixture
def digits(load_small: Callable[..., Dataset]) -> Split:
    return load_small("mnist").test


@pytest.fixture
def command(
    small_data: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run a command on the small digits and return its JSON."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--json", "--output", str(tmp_path)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def train_arguments(name: str, *settings: str) -> list[str]:
    assignments = [part for setting in settings for part in ("--set", setting)]
    words = "--epochs 6 --lr 0.1 --set train.batch_size=30 --set model.hidden=[5]"
    return ["train", "-q", "--name", name, *words.split(), *assignments]


def saved_image(split: Split, label: int, path: Path) -> str:
    Image.fromarray(split.images[split.labels == label][0].numpy()).save(path)
    return str(path)


def test_a_yes_no_network_from_training_to_predictions(
    command: Callable[..., Any], digits: Split, tmp_path: Path
) -> None:
    record = command(*train_arguments("three", BINARY, "objective.positive=3"))
    assert record["class_names"] == ["not 3", "3"]
    assert record["objective"] == "binary"
    state = torch.load(tmp_path / "three" / "model.pt", weights_only=True)
    assert [list(tensor.shape) for tensor in state.values()] == [[5, 784], [5], [1, 5], [1]]
    report = command("evaluate", "three")
    assert report["total"] == len(digits.labels)
    assert report["accuracy"] == record["test_accuracy"] > 0.9
    logits = load_model("three", tmp_path).model(digits.images.float() / 255)[:, 0].detach()
    truth = (digits.labels == 3).long()
    figures = report["binary"]
    assert figures["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, logits))
    assert figures["recall"] == pytest.approx(sklearn_metrics.recall_score(truth, logits > 0))
    loss = nn.BCEWithLogitsLoss()(logits, truth.float()).item()
    assert report["loss"] == pytest.approx(loss, rel=1e-5)
    paths = [saved_image(digits, label, tmp_path / f"{label}.png") for label in (3, 0)]
    predictions = command("predict", *paths, "--checkpoint", "three")
    for prediction, path in zip(predictions, paths, strict=True):
        explained = command("explain", path, "--checkpoint", "three", "--target", "3")
        assert explained["kind"] == "binary"
        assert explained["class_name"] == prediction["class_name"]
        assert explained["probability"] == pytest.approx(prediction["probability"], rel=1e-5)
        assert prediction["class_name"] in ("3", "not 3")


def test_a_subset_of_classes_keeps_its_names(
    command: Callable[..., Any], digits: Split, tmp_path: Path
) -> None:
    record = command(*train_arguments("some", "data.classes=[7, 0, 1]"))
    assert record["class_names"] == ["7", "0", "1"]
    report = command("evaluate", "some")
    assert [item["class_name"] for item in report["per_class"]] == ["7", "0", "1"]
    assert report["total"] == sum(int((digits.labels == c).sum()) for c in (7, 0, 1))
    assert report["accuracy"] > 0.8
    assert load_model("some", tmp_path).model.sizes == (784, 5, 3)
    path = saved_image(digits, 0, tmp_path / "0.png")
    (prediction,) = command("predict", path, "--checkpoint", "some")
    explained = command("explain", path, "--checkpoint", "some", "--target", "0")
    assert explained["rows"][0]["target"] == 1
    assert explained["label"] == prediction["label"]
    assert explained["class_name"] == prediction["class_name"]
    binary = (BINARY, "objective.positive=7", "data.classes=[3, 7]")
    assert command(*train_arguments("pair", *binary))["class_names"] == ["not 7", "7"]
    report = command("evaluate", "pair")
    assert [item["count"] for item in report["per_class"]] == [100, 100]


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([BINARY, "objective.positive=10"], "objective.positive = 10 is not"),
        (["data.classes=[3, 10]"], "has no class 10; its classes are 0 to 9"),
        (["data.classes=[3, 3]"], "data.classes names a class twice"),
        (["objective.kind='both'"], "objective.kind = 'both'"),
        (["model.hidden=[5, 0]"], "model.hidden = 0"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    refused: Callable[..., tuple[int, str]], tmp_path: Path, settings: list[str], message: str
) -> None:
    code, error = refused(*train_arguments("wrong", *settings), "--output", str(tmp_path))
    assert code == 2
    assert message in error
    assert not (tmp_path / "wrong").exists()


def test_the_recipe_asks_for_sevens_in_ten_epochs_without_distortions() -> None:
    config = resolve_config("is-it-a-7", environment={})
    assert (config.objective.kind, config.objective.positive) == ("binary", 7)
    assert config.train.epochs <= 10
    assert not any(config.augment.model_dump(exclude={"elastic_grid", "final_epochs"}).values())


@pytest.mark.slow
def test_the_recipe_reaches_its_goals(mnist_dir: Path, tmp_path: Path) -> None:
    data = {"data.dir": str(mnist_dir), "data.dataset": "mnist"}
    train("is-it-a-7", {**data, "run.output": str(tmp_path), "run.name": "seven"})
    report = evaluate("seven", output=tmp_path, data_dir=mnist_dir)
    assert report.binary is not None
    assert report.result.accuracy >= 0.993
    assert report.binary.recall >= 0.97


def test_a_weight_counts_each_yes_so_many_times() -> None:
    logits, labels = torch.tensor([[0.3], [-1.2], [2.0]]), torch.tensor([1, 0, 1])
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(4.0))(logits[:, 0], labels.float())
    assert torch.allclose(Binary(positive_weight=4.0).loss(logits, labels), expected)
    plain = Binary(positive_weight=4.0).example_losses(logits, labels)
    assert torch.equal(plain, Binary().example_losses(logits, labels))
