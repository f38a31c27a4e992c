from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from torch import nn

from mnist_ce.evaluation.evaluate import EvaluationReport, SplitResult
from mnist_ce.evaluation.metrics import (
    calibration_interval,
    expected_calibration_error,
    reliability_bins,
)
from mnist_ce.evaluation.temperature_scaling import fit_temperature
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.system.errors import UsageError

OUTCOMES = ("true_negatives", "false_positives", "false_negatives", "true_positives")


def evaluated(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> EvaluationReport:
    objective: Objective = Binary() if logits.shape[1] == 1 else Multiclass()
    names = tuple(map(str, range(max(logits.shape[1], 2))))
    trained = TrainedModel(
        nn.Identity(), Path("a.pt"), names, objective, None, "0" * 64, temperature=temperature
    )
    images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
    result = SplitResult(logits, labels, objective)
    return EvaluationReport(trained, "mnist", "test", names, result, images)


@given(
    seed=st.integers(0, 2**32),
    num_images=st.sampled_from([1, 2, 3, 16, 40]),
    num_outputs=st.sampled_from([1, 2, 3, 10]),
    num_present=st.sampled_from([1, 2, 10]),
    scale=st.sampled_from([0.0, 0.5, 1.0, 30.0, 1e4, 1e30]),
    temperature=st.sampled_from([1.0, 0.3, 7.0]),
)
@settings(deadline=None, max_examples=40)
def test_every_figure_equals_an_independent_computation(
    seed: int, num_images: int, num_outputs: int, num_present: int, scale: float, temperature: float
) -> None:
    """Logits with many ties, of any size; classes without an image; one image."""
    generator, num_classes = torch.Generator().manual_seed(seed), max(num_outputs, 2)
    logits = scale * torch.randint(-3, 4, (num_images, num_outputs), generator=generator)
    labels = torch.randint(min(num_present, num_classes), (num_images,), generator=generator)
    report = evaluated(logits, labels, temperature)
    figures = report.to_dict()
    json.dumps(figures, allow_nan=False)

    scores, truth = logits.double().numpy(), labels.numpy()
    if num_outputs == 1:
        scores = np.hstack([0 * scores, scores])
    predictions = scores.argmax(axis=1)
    correct, number = predictions == truth, num_images
    assert (figures["correct"], figures["total"]) == (correct.sum(), number)
    interval = stats.binomtest(figures["correct"], number).proportion_ci(method="wilson")
    assert figures["accuracy_interval"] == pytest.approx([interval.low, interval.high])
    classes = range(num_classes)
    matrix = sklearn_metrics.confusion_matrix(truth, predictions, labels=classes)
    assert figures["confusion_matrix"] == matrix.tolist()
    rates = sklearn_metrics.precision_recall_fscore_support(
        truth, predictions, labels=classes, zero_division=0
    )
    for key, values in zip(("precision", "recall", "f1", "count"), rates, strict=True):
        assert [row[key] for row in figures["per_class"]] == pytest.approx(values)

    nll = figures["calibration"]["nll_uncalibrated"]
    assert figures["loss"] == pytest.approx(nll, rel=1e-5, abs=1e-6)
    for key, divisor in (("", temperature), ("_uncalibrated", 1.0)):
        log_p = special.log_softmax(scores / divisor, axis=1)
        nll = -log_p[np.arange(number), truth].mean()
        assert figures["calibration"][f"nll{key}"] == pytest.approx(nll, rel=1e-9)
        confidence, _ = report.result.confidences(divisor)  # the last bit decides among equal ones
        assert confidence == pytest.approx(np.exp(log_p).max(axis=1))
        # Equal ones share their accuracy.
        _, tied = np.unique(confidence, return_inverse=True)
        accuracy = (np.bincount(tied, weights=correct) / np.bincount(tied))[tied]
        starts = np.arange(min(15, number)) * number // min(15, number)
        bins = np.split(np.argsort(confidence, kind="stable"), starts[1:])
        error = sum(abs(accuracy[part].sum() - confidence[part].sum()) for part in bins) / number
        assert figures["calibration"][f"ece{key}"] == pytest.approx(error, abs=1e-9)
        low, high = figures["calibration"][f"ece_interval{key}"]
        assert 0 <= low <= high <= 1
    if num_outputs == 1:
        margin, found = scores[:, 1], figures["binary"]
        expected = dict(zip(OUTCOMES, matrix.ravel().tolist(), strict=True))
        expected |= {
            key: values[1]
            for key, values in zip(("precision", "recall", "f1"), rates, strict=False)
        }
        has_yes, has_no = truth.any(), not truth.all()
        area = sklearn_metrics.roc_auc_score(truth, margin) if has_yes and has_no else None
        precision = sklearn_metrics.average_precision_score(truth, margin) if has_yes else None
        expected |= {"roc_auc": area, "average_precision": precision}
        assert found == pytest.approx(expected)


def simulated(
    num_images: int, seed: int, overconfidence: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Confidences as of a good network, whose odds are the true odds to that power."""
    rng = np.random.default_rng(seed)
    log_odds = np.abs(rng.normal(9, 4, num_images)) + 0.01
    correct = rng.random(num_images) < 1 / (1 + np.exp(-log_odds))
    return 1 / (1 + np.exp(-log_odds * overconfidence)), correct


def test_the_calibration_error_at_its_limits() -> None:
    for right in (True, False):
        correct = np.full(40, right)
        assert expected_calibration_error(np.ones(40), correct) == (not right)
        # As far as the accuracy may be from 1: Wilson's interval.
        accuracy = stats.binomtest(40 * right, 40).proportion_ci(method="wilson")
        expected = (0, 1 - accuracy.low) if right else (1 - accuracy.high, 1)
        assert calibration_interval(np.ones(40), correct) == pytest.approx(expected)


@pytest.mark.parametrize("num_images", [1, 10, 100, 1_000])
@pytest.mark.parametrize("overconfidence", [1.0, 2.0])
def test_the_interval_covers_the_true_error(num_images: int, overconfidence: float) -> None:
    rng = np.random.default_rng(0)
    log_odds = np.abs(rng.normal(3, 1.5, (60, num_images))) + 0.01
    accuracy = 1 / (1 + np.exp(-log_odds))
    confidence = 1 / (1 + np.exp(-log_odds * overconfidence))
    expected = float(np.abs(confidence - accuracy).mean())
    intervals = [
        calibration_interval(*each, num_resamples=100)
        for each in zip(confidence, rng.random(accuracy.shape) < accuracy, strict=True)
    ]
    # The bootstrap alone: 0 to 46 %, but where many are wrong.
    assert np.mean([low <= expected <= high for low, high in intervals]) >= 0.85


def test_the_bins_are_those_of_scikit_learn() -> None:
    confidence, correct = simulated(1_500, seed=3, overconfidence=1.4)
    bins = reliability_bins(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert [item.count for item in bins] == [100] * 15
    assert [item.accuracy for item in bins] == pytest.approx(accuracy)
    assert [item.confidence for item in bins] == pytest.approx(mean)


def test_the_interval_has_the_ends_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1.0, 400)
    correct = rng.random(400) < confidence - 0.15

    def statistic(said: Any, right: Any) -> float:
        return expected_calibration_error(said, right.astype(bool))

    data = (confidence, correct.astype(float))
    options: dict[str, Any] = {"paired": True, "vectorized": False, "n_resamples": 1_000, "rng": 5}
    basic, percentile = (
        stats.bootstrap(data, statistic, method=method, **options).confidence_interval
        for method in ("basic", "percentile")
    )
    found = calibration_interval(confidence, correct, num_resamples=4_000)
    accuracy = stats.binomtest(int(correct.sum()), 400).proportion_ci(method="wilson")
    lowest = min(basic.low, confidence.mean() - accuracy.high)
    assert found == pytest.approx((lowest, percentile.high), abs=0.004)
    assert calibration_interval(confidence, correct) == calibration_interval(confidence, correct)


def test_the_order_of_images_changes_no_calibration_error() -> None:
    confidence, correct = np.full(100, 0.1), np.arange(100) < 10  # as of a network of zeros
    assert expected_calibration_error(confidence, correct) == 0
    low, high = calibration_interval(confidence, correct)
    assert low == 0 < high < 0.1
    bins = reliability_bins(confidence, correct)
    assert [item.accuracy for item in bins] == pytest.approx([0.1] * 15)


def test_the_interval_reaches_zero_if_the_network_is_calibrated_and_only_then() -> None:
    lows = [
        calibration_interval(*simulated(10_000, seed), num_resamples=100)[0] for seed in range(12)
    ]
    assert sum(low == 0 for low in lows) >= 9  # the plain quantiles of resamples never are
    overconfident = simulated(10_000, seed=0, overconfidence=2.0)
    low, high = calibration_interval(*overconfident)
    assert 0 < low < expected_calibration_error(*overconfident) < high


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    """The labels are drawn from logits, which are then multiplied."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    result = SplitResult(factor * logits, labels, Multiclass())
    temperature = fit_temperature(result)
    assert temperature == pytest.approx(factor, rel=0.03)
    lowest = result.negative_log_likelihood(temperature)
    for nearby in (0.99 * temperature, 1.01 * temperature):
        assert result.negative_log_likelihood(nearby) > lowest


def test_the_temperature_of_a_yes_no_network_is_that_of_logistic_regression() -> None:
    """Dividing one logit by T is logistic regression with the slope 1/T and no intercept."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3_000, 1, generator=generator, dtype=torch.float64)
    labels = torch.bernoulli(torch.sigmoid(logits[:, 0] / 1.7), generator=generator).long()
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    slope = regression.fit(logits.numpy(), labels.numpy()).coef_[0, 0]
    assert fit_temperature(SplitResult(logits, labels, Binary())) == pytest.approx(1 / slope)


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (5 * torch.eye(10), "all are correct"),
        (5 * torch.eye(10).roll(1, dims=0), "better than chance"),
        (torch.zeros(10, 10), "better than chance"),
        (1e-4 * (torch.eye(10) + torch.eye(10).roll(1, dims=0).tril()), "not within 0.01 and 100"),
    ],
    ids=range(4),
)
def test_a_temperature_that_cannot_be_fitted_is_refused(logits: torch.Tensor, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        fit_temperature(SplitResult(logits, torch.arange(10), Multiclass()))


def test_confidences_near_one_stay_apart() -> None:
    logits = torch.tensor([[20.0, 0.0], [22.0, 0.0]])
    confidence, _ = SplitResult(logits, torch.tensor([0, 0]), Multiclass()).confidences()
    assert confidence[0] < confidence[1] < 1
