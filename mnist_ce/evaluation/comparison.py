"""Comparison of networks, or of groups of them, on the same images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.system.errors import UsageError

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An image whose predictions `a` and `b` differ."""

    index: int  # in the split, from 0
    label: int
    a: int
    b: int


@dataclass(frozen=True)
class Comparison:
    """The results of two networks on the same images."""

    a: EvaluationReport
    b: EvaluationReport

    @property
    def num_images(self) -> int:
        """The number of images."""
        return self.a.result.num_examples

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """The number of images that both, only one or none of the networks get right."""
        right_a = self.a.result.predictions == self.a.result.labels
        right_b = self.b.result.predictions == self.b.result.labels
        return {
            "both_right": int((right_a & right_b).sum()),
            "only_a_right": int((right_a & ~right_b).sum()),
            "only_b_right": int((~right_a & right_b).sum()),
            "both_wrong": int((~right_a & ~right_b).sum()),
        }

    @cached_property
    def differences(self) -> list[Difference]:
        """The images whose predictions differ, in the order of the split."""
        a, b = self.a.result.predictions, self.b.result.predictions
        rows = torch.stack([torch.arange(len(a)), self.a.result.labels, a, b], dim=1)  # [n, 4]
        return [Difference(*row) for row in rows[a != b].tolist()]

    @cached_property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test."""
        return mcnemar_p_value(self.outcomes["only_a_right"], self.outcomes["only_b_right"])

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at the 5 % level."""
        return self.p_value < SIGNIFICANCE_LEVEL

    @property
    def verdict(self) -> str:
        """One sentence: which network is better, and whether the difference is significant."""
        only_a, only_b = self.outcomes["only_a_right"], self.outcomes["only_b_right"]
        if only_a == only_b:
            return (
                f"Neither is better: each is correct on {self.a.result.num_correct:,} of "
                f"{self.num_images:,} images."
            )
        return (
            f"{'A' if only_a > only_b else 'B'} is correct on {abs(only_a - only_b):,} more of "
            f"{self.num_images:,} images; {'' if self.is_significant else 'not '}significant "
            f"(McNemar {p_text(self.p_value)})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: fractions, not percent."""
        return {
            "a": _summary(self.a),
            "b": _summary(self.b),
            **_task(self.a),
            **self.outcomes,
            "mcnemar_p_value": self.p_value,
            "significance_level": SIGNIFICANCE_LEVEL,
            "more_than_chance": self.is_significant,
            "verdict": self.verdict,
            "differences": [asdict(difference) for difference in self.differences],
        }


@dataclass(frozen=True)
class MultipleComparison:
    """The results of any number of networks on the same images, compared in pairs."""

    reports: Sequence[EvaluationReport]

    @cached_property
    def pairs(self) -> list[tuple[int, int, Comparison, float]]:
        """Both positions, comparison and p-value of each pair; the p-values are Holm's."""
        places = list(itertools.combinations(range(len(self.reports)), 2))
        found = [Comparison(self.reports[a], self.reports[b]) for a, b in places]
        adjusted = holm([comparison.p_value for comparison in found])
        return [
            (a, b, comparison, p_value)
            for (a, b), comparison, p_value in zip(places, found, adjusted, strict=True)
        ]

    @cached_property
    def predictions(self) -> Tensor:
        """The predictions, int64 [n, networks]."""
        return torch.stack([report.result.predictions for report in self.reports], dim=1)

    @cached_property
    def differing(self) -> list[int]:
        """The images on which not all predictions are equal.

        Those that most networks get wrong come first, those that all get wrong last.
        """
        labels = self.reports[0].result.labels[:, None]
        num_wrong = (self.predictions != labels).sum(dim=1) % len(self.reports)
        differs = (self.predictions != self.predictions[:, :1]).any(dim=1)
        order = torch.argsort(num_wrong, descending=True, stable=True)
        indices: list[int] = order[differs[order]].tolist()
        return indices

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: fractions, not percent."""
        labels, predictions = self.reports[0].result.labels.tolist(), self.predictions.tolist()
        return {
            "networks": [_summary(report) for report in self.reports],
            **_task(self.reports[0]),
            "pairs": [
                {
                    "a": a,
                    "b": b,
                    **comparison.outcomes,
                    "mcnemar_p_value": comparison.p_value,
                    "holm_p_value": adjusted,
                    "more_than_chance": adjusted < SIGNIFICANCE_LEVEL,
                }
                for a, b, comparison, adjusted in self.pairs
            ],
            "significance_level": SIGNIFICANCE_LEVEL,
            "differences": [
                {"index": index, "label": labels[index], "predictions": predictions[index]}
                for index in sorted(self.differing)
            ],
        }


@dataclass(frozen=True)
class GroupDifference:
    """The difference of the mean accuracies of two groups of networks, A minus B."""

    difference: float
    interval: tuple[float, float]  # of 95 %
    p_value: float


def compare(
    a: str | Path | TrainedModel,
    b: str | Path | TrainedModel,
    **options: Any,  # noqa: ANN401 - those of `evaluate`
) -> Comparison:
    """Compare two networks on the same images; for options and errors see `compare_all`."""
    return Comparison(*compare_all([a, b], **options).reports)


def compare_all(
    networks: Sequence[str | Path | TrainedModel],
    **options: Any,  # noqa: ANN401 - those of `evaluate`
) -> MultipleComparison:
    """Compare networks on the same images; for the options and errors see `evaluate`.

    If they do not have the same images and classes, it raises a UsageError.
    """
    reports = [evaluate(network, **options) for network in networks]
    for report in reports[1:]:
        _check_comparable(reports[0], report)
    return MultipleComparison(reports)


def compare_groups(a: Tensor, b: Tensor) -> GroupDifference:
    """Compare two groups of networks, each of equal settings, by a test over images and seeds.

    `a` and `b` say which images each network of a group gets right, bool [seeds, n], for the same
    images and at least two seeds each. The difference of the group means varies with the images,
    which are the same for both, and with the seeds of each group. So its variance is estimated by
    var(dᵢ)/n + var(aₛ)/|a| + var(bₛ)/|b|, where dᵢ is the difference of the two shares of networks
    right on image i, and aₛ and bₛ are the accuracies of single networks; the t distribution has
    the degrees of freedom of Satterthwaite (1946). It assumes that images and seeds are independent
    samples. What varies with image and seed together is in both parts, so the test errs on the side
    of caution: in simulations, 1 to 6 % of true null hypotheses are rejected at the 5 % level.
    """
    from scipy import stats

    right = [group.double() for group in (a, b)]
    per_image = right[0].mean(dim=0) - right[1].mean(dim=0)  # [n]
    samples = [per_image, *(group.mean(dim=1) for group in right)]
    variances = [float(sample.var()) / len(sample) for sample in samples]
    difference, variance = float(per_image.mean()), sum(variances)
    if not variance:
        return GroupDifference(difference, (difference, difference), float(difference == 0))
    parts = zip(variances, samples, strict=True)
    degrees = variance**2 / sum(part**2 / (len(sample) - 1) for part, sample in parts)
    error = variance**0.5
    half = float(stats.t.ppf(0.975, degrees)) * error
    p_value = float(2 * stats.t.sf(abs(difference) / error, degrees))
    return GroupDifference(difference, (difference - half, difference + half), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests, adjusted by Holm's method (1979)."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def p_text(p_value: float) -> str:
    """Return a p-value as `p = 0.0123`; one that is too small for a float as `p < 1e-300`."""
    return "p < 1e-300" if p_value < 1e-300 else f"p = {p_value:#.3g}"


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947).

    `only_a` images are right by the first network only, `only_b` by the second only; under the
    null hypothesis each of them is a fair coin toss.
    """
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _check_comparable(a: EvaluationReport, b: EvaluationReport) -> None:
    path_a, path_b, names_a, names_b = a.trained.path, b.trained.path, a.class_names, b.class_names
    if len(names_a) != len(names_b):
        raise UsageError(
            f"{path_a} has {len(names_a)} classes and {path_b} {len(names_b)}, so they cannot be "
            "compared"
        )
    if a.dataset != b.dataset:
        raise UsageError(
            f"{path_a} is of {a.dataset} and {path_b} of {b.dataset}; name the one to compare "
            "them on with --dataset"
        )
    if not torch.equal(a.images, b.images):
        raise UsageError(
            f"the {a.split} splits of {path_a} and {path_b} are not the same images, so they "
            "cannot be compared on them; --split test is the same for all runs of the same classes"
        )
    if not torch.equal(a.result.labels, b.result.labels):
        raise UsageError(
            f"{path_a} has the classes {', '.join(names_a)} and {path_b} {', '.join(names_b)}, "
            "so they cannot be compared"
        )


def _task(report: EvaluationReport) -> dict[str, Any]:
    task: dict[str, Any] = {"dataset": report.dataset, "split": report.split}
    return task | {"total": report.result.num_examples, "class_names": list(report.class_names)}


def _summary(report: EvaluationReport) -> dict[str, Any]:
    return {
        "checkpoint": str(report.trained.path),
        "weights_sha256": report.trained.weights_sha256,
        "loss": report.result.loss,
        "correct": report.result.num_correct,
        "accuracy": report.result.accuracy,
        "accuracy_interval": list(report.accuracy_interval),
    }
