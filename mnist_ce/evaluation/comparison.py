"""Comparing two networks on the same images: is the difference more than chance?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.system.errors import UsageError

__all__ = ["SIGNIFICANCE_LEVEL", "Comparison", "Difference", "compare", "mcnemar_p_value"]

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An image that the two networks answer differently.

    Args:
        index: Its number in the split, from 0.
        label: What it is.
        label_a: What the first network says.
        label_b: What the second says.
    """

    index: int
    label: int
    label_a: int
    label_b: int


@dataclass(frozen=True)
class Comparison:
    """What two networks say of the same images.

    Args:
        a: The first network's results.
        b: The second's.
    """

    a: EvaluationReport
    b: EvaluationReport

    @property
    def num_images(self) -> int:
        """How many images both answered."""
        return self.a.result.num_examples

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """How many images both get right, only one does, or none does."""
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
        """The images that they answer differently, in the order of the split."""
        answers_a, answers_b = self.a.result.predictions, self.b.result.predictions
        places = (answers_a != answers_b).nonzero()[:, 0]
        columns = (places, *(part[places] for part in (self.a.result.labels, answers_a, answers_b)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Difference(*row) for row in rows]

    @cached_property
    def p_value(self) -> float:
        """How often chance alone would give a difference as large as this, or larger."""
        return mcnemar_p_value(self.outcomes["only_a_right"], self.outcomes["only_b_right"])

    @property
    def is_more_than_chance(self) -> bool:
        """Whether that is seldom enough, at the 5 % level."""
        return self.p_value < SIGNIFICANCE_LEVEL

    @property
    def verdict(self) -> str:
        """One sentence that says which is better, and whether that is more than chance."""
        only_a, only_b = self.outcomes["only_a_right"], self.outcomes["only_b_right"]
        if only_a == only_b:
            return f"Neither is better: each gets {self.a.result.num_correct:,} images right."
        what = "more than chance" if self.is_more_than_chance else "but that may well be chance"
        return (
            f"{'A' if only_a > only_b else 'B'} gets {abs(only_a - only_b):,} more of "
            f"{self.num_images:,} images right, {what}, which alone would do as much in "
            f"{_percent(self.p_value)} of such comparisons."
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
            "more_than_chance": self.is_more_than_chance,
            "verdict": self.verdict,
            "differences": [
                {"index": d.index, "label": d.label, "a": d.label_a, "b": d.label_b}
                for d in self.differences
            ],
        }


def compare(
    a: str | Path,
    b: str | Path,
    *,
    split: str = "test",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    device: str = "auto",
) -> Comparison:
    """Ask two networks about the same images.

    Args:
        a: The first checkpoint, see `load_model`.
        b: The second.
        split: `train`, `validation` or `test`.
        dataset: Another dataset than the runs' own.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the runs' own.
        output: The folder that holds the runs.
        device: See `resolve_device`.

    Raises:
        CheckpointError: If a network cannot be loaded.
        DataError: If the data cannot be had.
        UsageError: If the two were not made for the same images and classes.
    """
    reports = [
        evaluate(
            checkpoint,
            split=split,
            dataset=dataset,
            data_dir=data_dir,
            output=output,
            device=device,
        )
        for checkpoint in (a, b)
    ]
    _check_comparable(*reports)
    return Comparison(*reports)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947).

    Were both networks as good, each image that only one of them gets right would be either's by
    the toss of a coin.

    Args:
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
    """
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _check_comparable(a: EvaluationReport, b: EvaluationReport) -> None:
    if len(a.class_names) != len(b.class_names):
        raise UsageError(
            f"{a.trained.path} knows {len(a.class_names)} classes and {b.trained.path} "
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
            f"{a.trained.path} tells {' from '.join(a.class_names)} and {b.trained.path} "
            f"{' from '.join(b.class_names)}, so they cannot be compared"
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


def _percent(fraction: float) -> str:
    if fraction < 0.0001:
        return "less than 0.01 %"
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "nearly all"
