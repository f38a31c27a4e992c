"""Comparison of models, or of groups of them, on the same images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_ce.evaluation.evaluate import EvaluationReport, captioned, evaluate
from mnist_ce.runs.load_model import NetworkOptions, TrainedModel, needs_options
from mnist_ce.system.errors import UsageError
from mnist_ce.system.notebook import Shown

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """Two of the compared models, and how many images both, only one or none of them get right."""

    a: int  # position among the models, as is b
    b: int
    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    mcnemar_p_value: float
    holm_p_value: float  # the same, adjusted for all pairs of the comparison

    @property
    def is_significant(self) -> bool:
        return self.holm_p_value < SIGNIFICANCE_LEVEL

    @property
    def verdict(self) -> str:
        num_correct = self.both_right + self.only_a_right  # of A
        lead = self.only_a_right - self.only_b_right
        images = f"of {num_correct + self.only_b_right + self.both_wrong:,} images"
        if not lead:
            return f"Neither is better: each is correct on {num_correct:,} {images}."
        better, negation = "A" if lead > 0 else "B", "" if self.is_significant else "not "
        p_value = p_text(self.mcnemar_p_value)
        return (
            f"{better} is correct on {abs(lead):,} more {images}; {negation}significant "
            f"(McNemar {p_value})."
        )


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """The results of two or more models on the same images, compared in pairs."""

    reports: Sequence[EvaluationReport]

    @property
    def labels(self) -> Tensor:  # int64 [n]
        return self.reports[0].result.labels

    @cached_property
    def predictions(self) -> Tensor:  # int64 [n, models]
        return torch.stack([report.result.predictions for report in self.reports], dim=1)

    @cached_property
    def pairs(self) -> list[Pair]:
        right = [report.result.is_correct for report in self.reports]
        pairs = []
        for (a, of_a), (b, of_b) in itertools.combinations(enumerate(right), 2):
            parts = (of_a & of_b, of_a & ~of_b, ~of_a & of_b, ~of_a & ~of_b)
            both, only_a, only_b, neither = (int(part.sum()) for part in parts)
            p_value = mcnemar_p_value(only_a, only_b)
            pairs.append(Pair(a, b, both, only_a, only_b, neither, p_value, p_value))
        adjusted = holm([pair.mcnemar_p_value for pair in pairs])
        return [replace(p, holm_p_value=new) for p, new in zip(pairs, adjusted, strict=True)]

    @cached_property
    def differing(self) -> list[int]:
        """Images on which not all predictions are equal, those wrong by most first, by all last."""
        num_wrong = (self.predictions != self.labels[:, None]).sum(dim=1) % len(self.reports)
        differs = (self.predictions != self.predictions[:, :1]).any(dim=1)
        order = torch.argsort(num_wrong, descending=True, stable=True)
        indices: list[int] = order[differs[order]].tolist()
        return indices

    def headline(self) -> str:
        text = f"{len(self.differing):,} of {len(self.labels):,} images are predicted differently"
        return f"{text}. {self.pairs[0].verdict}" if len(self.pairs) == 1 else text

    def table(self) -> list[tuple[str, ...]]:
        rows = enumerate(report.headline() for report in self.reports)
        return [("", "model"), *((chr(65 + place), text) for place, text in rows)]

    def shown_images(self) -> Iterator[tuple[NDArray[Any], str]]:
        return captioned(self.reports, self.differing)

    def to_dict(self) -> dict[str, Any]:
        report, models = self.reports[0], [report.summary() for report in self.reports]
        pairs = [asdict(pair) | {"more_than_chance": pair.is_significant} for pair in self.pairs]
        labels, predictions = self.labels.tolist(), self.predictions.tolist()
        differences = [
            {"index": index, "label": labels[index], "predictions": predictions[index]}
            for index in sorted(self.differing)
        ]
        content: dict[str, Any] = {"dataset": report.dataset, "split": report.split}
        content |= {"total": len(labels), "class_names": list(report.class_names)}
        content |= {"significance_level": SIGNIFICANCE_LEVEL, "differences": differences}
        if len(models) > 2:
            return {"networks": models, "pairs": pairs, **content}
        del pairs[0]["holm_p_value"]  # of one pair alone it is McNemar's
        for item in differences:
            item["a"], item["b"] = item.pop("predictions")
        content["verdict"] = self.pairs[0].verdict
        return pairs[0] | {"a": models[0], "b": models[1]} | content


def compare(
    *checkpoints: str | Path | TrainedModel,
    output: str | Path = "checkpoints",
    **options: Any,  # noqa: ANN401 - those of `evaluate`
) -> Comparison:
    """Compare two or more models on the same images; for the options and errors see `evaluate`.

    `NetworkOptions` are for weights of other programs alone. If they do not have the same images
    and classes, it raises a UsageError.
    """
    for_runs = {k: v for k, v in options.items() if k not in NetworkOptions.__annotations__}
    reports = [
        evaluate(one, output=output, **(options if needs_options(one, output) else for_runs))
        for one in checkpoints
    ]
    if len({len(report.images) for report in reports}) > 1:  # one was trained on the dataset
        reports = [evaluate(report.trained, **for_runs, held_out=True) for report in reports]
    for report in reports[1:]:
        _check_comparable(reports[0], report)
    return Comparison(reports)


@dataclass(frozen=True)
class GroupDifference:
    """The difference of the mean accuracies of two groups of models, A minus B."""

    difference: float
    interval: tuple[float, float]  # of 95 %
    p_value: float


def compare_groups(a: Tensor, b: Tensor) -> GroupDifference:
    """Compare two groups of models, each of equal settings, by a test over images and seeds.

    `a` and `b` say which images each model of a group gets right, bool [seeds, n], for the same
    images and at least two seeds each. The difference of the group means varies with the images,
    which are the same for both, and with the seeds of each group. So its variance is estimated by
    var(dᵢ)/n + var(aₛ)/|a| + var(bₛ)/|b|, where dᵢ is the difference of the two fractions of models
    right on image i, and aₛ and bₛ are the accuracies of single models; the t distribution has the
    degrees of freedom of Satterthwaite (1946). It assumes that images and seeds are independent
    samples. What varies with image and seed together is in both parts, so the test errs on the side
    of caution: in simulations, 1 to 6 % of true null hypotheses are rejected at the 5 % level. One
    image has no variance: nothing is known then, and the p-value is 1.
    """
    from scipy import special  # scipy.stats would take 1.5 s to import

    a, b = a.double(), b.double()
    per_image = a.mean(dim=0) - b.mean(dim=0)  # [n]
    difference = float(per_image.mean())
    if len(per_image) == 1:
        return GroupDifference(difference, (-1.0, 1.0), 1.0)
    samples = [per_image, a.mean(dim=1), b.mean(dim=1)]
    variances = [float(sample.var()) / len(sample) for sample in samples]
    variance = sum(variances)
    if not variance:
        return GroupDifference(difference, (difference, difference), float(difference == 0))
    parts = zip(variances, samples, strict=True)
    degrees = variance**2 / sum(part**2 / (len(sample) - 1) for part, sample in parts)
    error = variance**0.5
    half = float(special.stdtrit(degrees, 0.975)) * error
    p_value = float(2 * special.stdtr(degrees, -abs(difference) / error))
    interval = max(difference - half, -1.0), min(difference + half, 1.0)
    return GroupDifference(difference, interval, p_value)


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
    """Return the two-sided p-value of McNemar's exact test (1947), of tosses of a fair coin."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _check_comparable(a: EvaluationReport, b: EvaluationReport) -> None:
    path_a, path_b = a.trained.path, b.trained.path
    if a.dataset != b.dataset:
        raise UsageError(
            f"{path_a} is of {a.dataset} and {path_b} of {b.dataset}; name the one to compare "
            "them on with --dataset"
        )
    if not a.has_images_of(b):
        raise UsageError(
            f"the {a.split} splits of {path_a} and {path_b} are not the same images with the same "
            "labels, so they cannot be compared; --split test is the same for all runs of the same "
            "classes"
        )
