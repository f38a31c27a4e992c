"""Calibration error of predicted probabilities, and the temperature that reduces it.

Of predictions with a confidence of 90 %, 90 % should be correct; the calibration error measures
the deviation from that. Dividing all logits by one number, the temperature, before the softmax
removes most of it and changes no prediction (Guo et al. 2017, arXiv:1706.04599).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mnist_ce.network.objective import Objective
from mnist_ce.system.errors import UsageError

NUM_BINS = 15
_RESAMPLES_AT_ONCE = 50  # 4 MB of gaps for 10,000 images

Confidences = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Gaps = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """The number of predictions of similar confidence, their mean confidence and accuracy."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationReport:
    """The calibration of a network's predictions."""

    nll: float  # mean negative log-likelihood of the labels, in nats
    ece: float  # expected calibration error, a fraction
    ece_interval: tuple[float, float]  # 95 %, bootstrap
    bins: list[ReliabilityBin]  # of equal size, the least confident first

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self) | {"ece_interval": list(self.ece_interval)}


def calibration_report(
    logits: Tensor, labels: Tensor, objective: Objective, temperature: float = 1.0
) -> CalibrationReport:
    """Measure the calibration of a network's predictions, whose logits the temperature divides.

    `logits` are float32 [n, outputs] and `labels` int64 [n], as in the next two functions.
    """
    confidence, correct = confidences(logits, labels, objective, temperature)
    return CalibrationReport(
        nll=negative_log_likelihood(logits, labels, objective, temperature),
        ece=expected_calibration_error(confidence, correct),
        ece_interval=calibration_interval(confidence, correct),
        bins=reliability_bins(confidence, correct),
    )


def confidences(
    logits: Tensor, labels: Tensor, objective: Objective, temperature: float = 1.0
) -> tuple[Confidences, Bools]:
    """Return the probability, float64 [n], and the correctness, bool [n], of each prediction."""
    # float64: in float32 a confident network's probabilities all round to 1.
    probabilities = objective.probabilities(logits.double() / temperature)
    correct = objective.predictions(logits) == labels
    return probabilities.amax(dim=1).numpy(), correct.numpy()


def negative_log_likelihood(
    logits: Tensor, labels: Tensor, objective: Objective, temperature: float = 1.0
) -> float:
    """Return the mean of -log p(label), in nats; at temperature 1 it is the loss."""
    return objective.example_losses(logits.double() / temperature, labels).mean().item()


def expected_calibration_error(
    confidence: Confidences, correct: Bools, num_bins: int = NUM_BINS
) -> float:
    """Return the mean gap between confidence and accuracy over bins.

    That is Σ (images in the bin / all images) · |accuracy - mean confidence| (Guo et al. 2017,
    eq. 3). The bins have equal numbers of images (Nguyen and O'Connor 2015): with bins of equal
    width nearly all images fall into the last one. Sampling noise adds to the sum, so even a
    perfectly calibrated network has an error above 0.

    `confidence` is float [n], n at least 1, and `correct` bool [n], as in the next two functions.
    """
    return float(_error(_sorted_gaps(confidence, correct)[None], num_bins)[0])


def calibration_interval(
    confidence: Confidences,
    correct: Bools,
    num_bins: int = NUM_BINS,
    *,
    num_resamples: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the expected calibration error.

    Resampling adds noise of its own, so the resamples are biased upward by about as much as the
    estimate e itself. The lower end corrects that as the basic interval does, 2·e - q(97.5 %), but
    not below 0; the upper end is the plain quantile q(97.5 %) (Davison and Hinkley 1997,
    *Bootstrap Methods and their Application*, sections 5.2 and 5.3). On simulated predictions
    of a good network (n = 10,000) the interval covers the true error in 90 to 98 of 100 cases,
    and in 82 to 88 where that is 0, which the plain quantiles never reach.
    """
    gaps = _sorted_gaps(confidence, correct)
    generator = np.random.default_rng(seed)
    errors = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        shape = (min(_RESAMPLES_AT_ONCE, num_resamples - start), len(gaps))
        # Sorted indices into sorted images: the resample is sorted by confidence too.
        indices = np.sort(generator.integers(len(gaps), size=shape, dtype=np.int32), axis=1)
        errors.append(_error(gaps[indices], num_bins))
    high = float(np.quantile(np.concatenate(errors), 0.975))
    error = float(_error(gaps[None], num_bins)[0])
    return max(0.0, 2 * error - high), high


def reliability_bins(
    confidence: Confidences, correct: Bools, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Return the predictions in bins of equal size, the least confident first; at most n bins."""
    order = np.argsort(confidence, kind="stable")
    return [
        ReliabilityBin(
            count=len(group),
            confidence=float(confidence[group].mean(dtype=np.float64)),
            accuracy=int(correct[group].sum()) / len(group),
        )
        for group in np.split(order, _starts(len(order), num_bins)[1:])
    ]


def fit_temperature(logits: Tensor, labels: Tensor, objective: Objective) -> float:
    """Return the temperature with the lowest negative log-likelihood (Guo et al. 2017).

    That is convex in 1 / temperature, so there is one minimum. `logits`, float32 [n, outputs], and
    `labels`, int64 [n], are of images that the network was not trained on.

    Raises:
        UsageError: If there is no minimum.
    """
    from scipy.optimize import minimize_scalar

    if bool((objective.predictions(logits) == labels).all()):
        raise _no_temperature(len(labels), "all are correct")
    low, high = math.log(1e-2), math.log(1e2)
    found = minimize_scalar(
        lambda value: negative_log_likelihood(logits, labels, objective, math.exp(value)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-8},
    )
    if found.x > high - 1e-3:
        raise _no_temperature(len(labels), "they are no better than chance")
    return math.exp(found.x)


def _no_temperature(num_images: int, reason: str) -> UsageError:
    return UsageError(
        f"no temperature can be fitted to these {num_images:,} predictions, because {reason}; "
        "use more held-out images, or a better network"
    )


def _sorted_gaps(confidence: Confidences, correct: Bools) -> Gaps:
    """Return correct - confidence of each image, the least confident first, float64 [n]."""
    order = np.argsort(confidence, kind="stable")
    return correct[order].astype(np.float64) - confidence[order]


def _starts(num_images: int, num_bins: int) -> npt.NDArray[np.int64]:
    """Return the index of each bin's first sorted image, int64 [bins]."""
    bins = min(num_bins, num_images)
    return np.arange(bins, dtype=np.int64) * num_images // bins


def _error(gaps: Gaps, num_bins: int) -> Gaps:
    """Return the calibration error of each row of sorted gaps, float64 [rows, n] → [rows]."""
    num_images = gaps.shape[1]
    sums = np.add.reduceat(gaps, _starts(num_images, num_bins), axis=1)  # [rows, bins]
    errors: Gaps = np.abs(sums).sum(axis=1) / num_images
    return errors
