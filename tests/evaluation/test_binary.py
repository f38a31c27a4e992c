"""The yes/no network and subsets of classes, from training to predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

from mnist_ce import load_model, predict
from mnist_ce.config import resolve_config
from mnist_ce.data.splits import Dataset
from mnist_ce.evaluation.evaluate import evaluate
from mnist_ce.explain.image import explain_image
from mnist_ce.network.objective import Binary
from mnist_ce.training.callbacks import TrainResult
from mnist_ce.training.trainer import train


@pytest.mark.parametrize(
    ("chosen", "names", "target"),
    [
        ({"objective__kind": "binary", "objective__positive": 3}, ("not 3", "3"), 1),
        ({"data__classes": [7, 3, 1]}, ("7", "3", "1"), 1),
        (
            {"objective__kind": "binary", "objective__positive": 7, "data__classes": [3, 7]},
            ("not 7", "7"),
            0,
        ),
    ],
)
def test_a_question_about_some_classes_from_training_to_predictions(
    train_small: Callable[..., TrainResult],
    load_small: Callable[..., Dataset],
    tmp_path: Path,
    chosen: dict[str, Any],
    names: tuple[str, ...],
    target: int,
) -> None:
    record = train_small("a", train__epochs=6, model__hidden=[5], **chosen).record
    assert record["class_names"] == list(names)
    report = evaluate("a", output=tmp_path)
    classes = torch.tensor(chosen.get("data__classes", range(10)))
    digits = load_small("mnist").test
    asked = digits[torch.isin(digits.labels, classes)]
    truth = (asked.labels[:, None] == classes).long().argmax(dim=1)
    logits = load_model("a", tmp_path).model(asked.images.flatten(1) / 255).detach()
    assert report.result.accuracy == record["test_accuracy"] > 0.8
    if positive := chosen.get("objective__positive"):
        truth = (asked.labels == positive).long()
        loss = nn.BCEWithLogitsLoss()(logits[:, 0], truth.float()).item()
        area = sklearn_metrics.roc_auc_score(truth, logits[:, 0])
        assert report.binary is not None
        assert report.binary.roc_auc == pytest.approx(area)
    else:
        loss = nn.CrossEntropyLoss()(logits, truth).item()
    assert torch.equal(report.result.labels, truth)
    assert report.result.loss == pytest.approx(loss, rel=1e-5)
    assert [item.class_name for item in report.per_class] == list(names)
    assert [item.count for item in report.per_class] == truth.bincount().tolist()
    state = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert len(state["l2.bias"]) == logits.shape[1] == (1 if positive else len(names))

    image = digits.images[digits.labels == 3][0].numpy()
    (prediction,) = predict([image], checkpoint="a", output=tmp_path)
    explained = explain_image(image, names[target], checkpoint="a", output=tmp_path).to_dict()
    assert explained["kind"] == ("binary" if positive else "logits")
    assert explained["rows"][0]["target"] == target
    assert explained["class_name"] == prediction.class_name in names
    assert explained["probability"] == pytest.approx(prediction.probability, rel=1e-5)


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
