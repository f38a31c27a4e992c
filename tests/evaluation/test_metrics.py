from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mnist_ce.evaluation.metrics import (
    calibration_interval,
    confidences,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    wilson_interval,
)
from mnist_ce.evaluation.temperature_scaling import fit_temperature
from mnist_ce.network.objective import Binary, Multiclass
from mnist_ce.system.errors import UsageError


@pytest.mark.parametrize(
    ("num_correct", "num_examples"), [(0, 1), (0, 50), (7, 9), (9_954, 10_000), (3, 3)]
)
def test_the_interval_of_a_fraction_is_scipys(num_correct: int, num_examples: int) -> None:
    expected = stats.binomtest(num_correct, num_examples).proportion_ci(method="wilson")
    assert wilson_interval(num_correct, num_examples) == pytest.approx(
        (expected.low, expected.high)
    )


def simulated(
    num_images: int, seed: int, overconfidence: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Confidences as of a good network, whose odds are the true odds to that power."""
    rng = np.random.default_rng(seed)
    log_odds = np.abs(rng.normal(9, 4, num_images)) + 0.01
    correct = rng.random(num_images) < 1 / (1 + np.exp(-log_odds))
    return 1 / (1 + np.exp(-log_odds * overconfidence)), correct


def random_logits(num_images: int, seed: int, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `factor` times as large as those from which the labels were drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_images, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return factor * logits, labels


def test_the_calibration_error_at_its_limits() -> None:
    for right in (True, False):
        correct = np.full(40, right)
        assert expected_calibration_error(np.ones(40), correct) == (not right)
        assert calibration_interval(np.ones(40), correct) == (not right, not right)
    few = np.array([0.9, 0.5]), np.array([True, True])  # fewer images than bins: a bin each
    assert expected_calibration_error(*few) == pytest.approx(0.3)
    assert len(reliability_bins(*few)) == 2


def test_the_bins_are_those_of_scikit_learn() -> None:
    confidence, correct = simulated(1_500, seed=3, overconfidence=1.4)
    bins = reliability_bins(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert [item.count for item in bins] == [100] * 15
    assert [item.accuracy for item in bins] == pytest.approx(accuracy)
    assert [item.confidence for item in bins] == pytest.approx(mean)
    error = np.abs(accuracy - mean).mean()
    assert expected_calibration_error(confidence, correct) == pytest.approx(error)


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
    assert found == pytest.approx((basic.low, percentile.high), abs=0.004)
    assert calibration_interval(confidence, correct) == calibration_interval(confidence, correct)


def test_the_interval_reaches_zero_if_the_network_is_calibrated_and_only_then() -> None:
    predictions = [simulated(10_000, seed) for seed in range(20)]
    lows = [calibration_interval(*item, num_resamples=200)[0] for item in predictions]
    assert sum(low == 0 for low in lows) >= 15  # the plain quantiles of resamples never are
    overconfident = simulated(10_000, seed=0, overconfidence=2.0)
    low, high = calibration_interval(*overconfident)
    assert 0 < low < expected_calibration_error(*overconfident) < high


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    logits, labels = random_logits(20_000, seed=1, factor=factor)
    temperature = fit_temperature(logits, labels, Multiclass())
    assert temperature == pytest.approx(factor, rel=0.03)
    least = negative_log_likelihood(logits, labels, Multiclass(), temperature)
    probabilities = (logits.double() / temperature).softmax(dim=1).numpy()
    assert least == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-9)
    for nearby in (0.99 * temperature, 1.01 * temperature):
        assert negative_log_likelihood(logits, labels, Multiclass(), nearby) > least


def test_the_temperature_of_a_yes_no_network_is_that_of_logistic_regression() -> None:
    """Dividing one logit by T is logistic regression with the slope 1/T and no intercept."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3_000, 1, generator=generator, dtype=torch.float64)
    labels = torch.bernoulli(torch.sigmoid(logits[:, 0] / 1.7), generator=generator).long()
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    slope = regression.fit(logits.numpy(), labels.numpy()).coef_[0, 0]
    assert fit_temperature(logits, labels, Binary()) == pytest.approx(1 / slope, rel=1e-5)


@pytest.mark.parametrize(("shift", "reason"), [(0, "all are correct"), (1, "better than chance")])
def test_a_temperature_that_cannot_be_fitted_is_refused(shift: int, reason: str) -> None:
    labels = torch.arange(10)
    logits = 5 * torch.eye(10)[(labels + shift) % 10]
    with pytest.raises(UsageError, match=reason):
        fit_temperature(logits, labels, Multiclass())


def test_a_temperature_changes_confidence_and_no_prediction() -> None:
    logits, labels = random_logits(200, seed=4, factor=5.0)
    sharp, correct = confidences(logits, labels, Multiclass())
    soft, still_correct = confidences(logits, labels, Multiclass(), 5.0)
    assert (correct == still_correct).all()
    assert (soft < sharp).all()
    logits = torch.tensor([[20.0, 0.0], [22.0, 0.0]])
    confidence, _ = confidences(logits, torch.tensor([0, 0]), Multiclass())
    assert confidence[0] < confidence[1] < 1  # near one they stay apart
