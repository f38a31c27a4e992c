"""Numbers about answers: intervals, tables per class, confusion.

All are sums over examples, never means of batch means.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BinaryReport",
    "ClassReport",
    "average_precision",
    "binary_report",
    "class_reports",
    "confusion_matrix",
    "roc_auc",
    "wilson_interval",
]

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(num_correct: int, num_examples: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a fraction (Wilson 1927), 95 % by default.

    Unlike the plain normal interval it stays within [0, 1] and is honest near both ends.

    Args:
        num_correct: Right answers.
        num_examples: All answers, at least 1.
        z: The normal quantile.
    """
    fraction = num_correct / num_examples
    shrink = 1 + z * z / num_examples
    centre = (fraction + z * z / (2 * num_examples)) / shrink
    spread = fraction * (1 - fraction) / num_examples + z * z / (4 * num_examples**2)
    half = z * math.sqrt(spread) / shrink
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == num_examples else min(1.0, centre + half)
    return low, high


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count answers: row = true class, column = answer.

    Args:
        predictions: int64 [n].
        labels: int64 [n].
        num_classes: The number of classes.

    Returns:
        int64 [num_classes, num_classes].
    """
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassReport:
    """How well one class is found.

    Precision is 0 where the class was never answered, recall where it never occurs.
    """

    class_name: str
    precision: float
    recall: float
    f1: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def class_reports(confusion: Tensor, class_names: tuple[str, ...]) -> list[ClassReport]:
    """Return precision, recall, F1 and count of each class, from int64 [classes, classes]."""
    right = confusion.diagonal().tolist()
    answered = confusion.sum(dim=0).tolist()
    counts = confusion.sum(dim=1).tolist()
    return [
        ClassReport(
            class_name=name,
            precision=hit / max(answer, 1),
            recall=hit / max(count, 1),
            f1=2 * hit / max(answer + count, 1),
            count=count,
        )
        for name, hit, answer, count in zip(class_names, right, answered, counts, strict=True)
    ]


@dataclass(frozen=True)
class BinaryReport:
    """What a yes/no network does with each kind of image."""

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


def binary_report(scores: Tensor, predictions: Tensor, labels: Tensor) -> BinaryReport:
    """Summarise yes/no answers.

    Args:
        scores: float32 [n], higher means yes.
        predictions: int64 [n], 1 for yes.
        labels: int64 [n], 1 for yes.
    """
    (negatives, false_positives), (false_negatives, positives) = confusion_matrix(
        predictions, labels, 2
    ).tolist()
    return BinaryReport(
        precision=positives / max(positives + false_positives, 1),
        recall=positives / max(positives + false_negatives, 1),
        f1=2 * positives / max(2 * positives + false_positives + false_negatives, 1),
        roc_auc=roc_auc(scores, labels),
        average_precision=average_precision(scores, labels),
        true_positives=positives,
        false_positives=false_positives,
        true_negatives=negatives,
        false_negatives=false_negatives,
    )


def _ranked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return true and false positives at each distinct threshold, from the highest down."""
    scores, order = scores.double().sort(descending=True)
    hits = labels[order].double()
    last_of_its_score = torch.ones(len(scores), dtype=torch.bool)
    last_of_its_score[:-1] = scores[:-1] != scores[1:]
    true_positives = hits.cumsum(0)[last_of_its_score]
    false_positives = (1 - hits).cumsum(0)[last_of_its_score]
    return true_positives, false_positives


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the receiver operating characteristic: P(score of yes > of no).

    Ties count one half (the trapezoid rule over distinct thresholds). NaN where one of the two
    classes is missing.
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
