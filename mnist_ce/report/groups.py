"""What a report says about groups of runs: their curves, their means, and which is better."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mnist_ce.evaluation.comparison import (
    SIGNIFICANCE_LEVEL,
    GroupDifference,
    compare_groups,
    holm,
    p_text,
)
from mnist_ce.report.page import GroupSection, ReportedRun
from mnist_ce.report.plots.bands import draw_group_curves
from mnist_ce.report.plots.canvas import Heading
from mnist_ce.runs.groups import RunGroup, group_runs


def group_section(runs: Sequence[ReportedRun], right: Mapping[str, Tensor]) -> GroupSection | None:
    """Return what is said about groups; None where no two runs differ in the seed alone.

    `right` says by name which test images a run gets right, bool [n].
    """
    groups = group_runs((run.name, run.record) for run in runs)
    if all(len(group.names) == 1 for group in groups):
        return None
    rows = {run.name: run.curves.rows for run in runs}
    curves = {group.label: [rows[name] for name in group.names] for group in groups}
    drawn = [
        draw_group_curves(quantity, Heading(title, "mean over the seeds"), curves)
        for quantity, title in (("loss", "Loss (mean cross-entropy)"), ("accuracy", "Error (%)"))
    ]
    return GroupSection(groups, drawn, _sentences(groups, right))


def _sentences(groups: Sequence[RunGroup], right: Mapping[str, Tensor]) -> list[str]:
    tested = [
        group for group in groups if len(group.names) > 1 and all(n in right for n in group.names)
    ]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(tested, 2)
        if all(a.records[0][key] == b.records[0][key] for key in ("dataset_digest", "class_names"))
    ]
    stacked = {id(group): torch.stack([right[n] for n in group.names]) for group in tested}
    found = [compare_groups(stacked[id(a)], stacked[id(b)]) for a, b in pairs]  # [seeds, n] each
    adjusted = holm([difference.p_value for difference in found])
    return [_sentence(*rest) for rest in zip(pairs, found, adjusted, strict=True)]


def _sentence(pair: tuple[RunGroup, RunGroup], found: GroupDifference, p_value: float) -> str:
    a, b = (group.label for group in pair)
    difference, (low, high) = 100 * found.difference, (100 * limit for limit in found.interval)
    if difference < 0:
        a, b, difference, low, high = b, a, -difference, -high, -low
    figures = f"95 % interval {low:.2f} to {high:.2f}; {p_text(p_value)}"
    if p_value < SIGNIFICANCE_LEVEL:
        return f"{a} is better than {b} by {difference:.2f} percentage points ({figures})."
    return (
        f"{a} is not significantly better than {b}: the difference is {difference:.2f} percentage "
        f"points ({figures})."
    )
