"""Comparison of two networks on the same images, with McNemar's test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

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
            f"(McNemar p = {self.p_value:#.3g})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: fractions, not percent."""
        return {
            "a": _summary(self.a),
            "b": _summary(self.b),
            "dataset": self.a.dataset,
            "split": self.a.split,
            "total": self.num_images,
            "class_names": list(self.a.class_names),
            **self.outcomes,
            "mcnemar_p_value": self.p_value,
            "significance_level": SIGNIFICANCE_LEVEL,
            "more_than_chance": self.is_significant,
            "verdict": self.verdict,
            "differences": [asdict(difference) for difference in self.differences],
        }


def compare(
    a: str | Path | TrainedModel,
    b: str | Path | TrainedModel,
    *,
    split: str = "test",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    device: str = "auto",
) -> Comparison:
    """Compare two networks on the same images; for the arguments and errors see `evaluate`.

    If the two do not have the same images and classes, it raises a UsageError.
    """
    run = partial(
        evaluate, split=split, dataset=dataset, data_dir=data_dir, output=output, device=device
    )
    comparison = Comparison(run(a), run(b))
    _check_comparable(comparison.a, comparison.b)
    return comparison


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
    if len(a.class_names) != len(b.class_names):
        raise UsageError(
            f"{a.trained.path} has {len(a.class_names)} classes and {b.trained.path} "
            f"{len(b.class_names)}, so they cannot be compared"
        )
    if a.dataset != b.dataset:
        raise UsageError(
            f"{a.trained.path} is of {a.dataset} and {b.trained.path} of {b.dataset}; name the "
            "one to compare them on with --dataset"
        )
    if not torch.equal(a.images, b.images):
        raise UsageError(
            f"the {a.split} splits of {a.trained.path} and {b.trained.path} are not the same "
            "images, so they cannot be compared on them; --split test is the same for all runs of "
            "the same classes"
        )
    if not torch.equal(a.result.labels, b.result.labels):
        raise UsageError(
            f"{a.trained.path} has the classes {', '.join(a.class_names)} and {b.trained.path} "
            f"{', '.join(b.class_names)}, so they cannot be compared"
        )


def _summary(report: EvaluationReport) -> dict[str, Any]:
    return {
        "checkpoint": str(report.trained.path),
        "weights_sha256": report.trained.weights_sha256,
        "loss": report.result.loss,
        "correct": report.result.num_correct,
        "accuracy": report.result.accuracy,
        "accuracy_interval": list(report.accuracy_interval),
    }
