"""Metrics of predictions: accuracy interval, confusion matrix, per-class and binary metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(num_correct: int, num_examples: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a fraction (Wilson 1927), 95 % by default.

    Unlike the normal approximation it stays within [0, 1] and keeps its coverage near both ends.
    """
    fraction = num_correct / num_examples
    shrink = 1 + z * z / num_examples
    centre = (fraction + z * z / (2 * num_examples)) / shrink
    spread = fraction * (1 - fraction) / num_examples + z * z / (4 * num_examples**2)
    half = z * math.sqrt(spread) / shrink
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == num_examples else min(1.0, centre + half)
    return low, high


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Count int64 [n] predictions: row = true class, column = predicted class."""
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    rows: list[list[int]] = cells.reshape(num_classes, num_classes).tolist()
    return rows


def most_confident_mistakes(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the indices of the wrong predictions, the most probable one first.

    `labels` and `predictions` are [n], `probabilities` [n, classes].
    """
    wrong = np.flatnonzero(predictions != labels)
    confidence = probabilities[wrong, predictions[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")]


@dataclass(frozen=True)
class ClassReport:
    """The metrics of one class; precision is 0 where it is never predicted."""

    class_name: str
    precision: float
    recall: float
    f1: float
    count: int


def class_reports(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> list[ClassReport]:
    """Return the metrics of each class, from a confusion matrix."""
    reports = []
    for index, (name, row) in enumerate(zip(class_names, confusion, strict=True)):
        count, num_predicted = sum(row), sum(other[index] for other in confusion)
        reports.append(
            ClassReport(
                class_name=name,
                precision=row[index] / max(num_predicted, 1),
                recall=row[index] / max(count, 1),
                f1=2 * row[index] / max(num_predicted + count, 1),
                count=count,
            )
        )
    return reports


@dataclass(frozen=True)
class BinaryReport:
    """The metrics of a yes/no network; precision, recall and F1 are those of yes."""

    precision: float
    recall: float
    f1: float
    roc_auc: float
    average_precision: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; None for what needs a class that is missing."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def binary_report(
    scores: Tensor, labels: Tensor, confusion: Sequence[Sequence[int]]
) -> BinaryReport:
    """Return the metrics of a yes/no network: float32 [n] scores, int64 [n] labels, 1 for yes."""
    yes = class_reports(confusion, ("no", "yes"))[1]
    (true_negatives, false_positives), (false_negatives, true_positives) = confusion
    return BinaryReport(
        precision=yes.precision,
        recall=yes.recall,
        f1=yes.f1,
        roc_auc=roc_auc(scores, labels),
        average_precision=average_precision(scores, labels),
        true_positives=true_positives,
        false_positives=false_positives,
        true_negatives=true_negatives,
        false_negatives=false_negatives,
    )


def _ranked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return true and false positives at each distinct threshold, from the highest down."""
    scores, order = scores.double().sort(descending=True)
    positive = labels[order].double()
    is_last = torch.ones(len(scores), dtype=torch.bool)  # of equal scores
    is_last[:-1] = scores[:-1] != scores[1:]
    return positive.cumsum(0)[is_last], (1 - positive).cumsum(0)[is_last]


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve, which is P(score of a yes > score of a no).

    Ties count one half (the trapezoid rule over distinct thresholds). NaN where a class is missing.
    """
    true_positives, false_positives = _ranked(scores, labels)
    if not true_positives[-1] or not false_positives[-1]:
        return math.nan
    zero = torch.zeros(1, dtype=torch.float64)
    y = torch.cat([zero, true_positives / true_positives[-1]])
    x = torch.cat([zero, false_positives / false_positives[-1]])
    return float(torch.trapezoid(y, x))


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the sum over thresholds of (gain in recall) × precision; NaN without a yes."""
    true_positives, false_positives = _ranked(scores, labels)
    if not true_positives[-1]:
        return math.nan
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / true_positives[-1]
    gain = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
    return float((gain * precision).sum())
