"""HTML page about one or several runs.

The template escapes all text, and the page's content security policy forbids scripts and external
resources, so a run directory from an unknown source is safe to look at.
"""

from __future__ import annotations

import base64
import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnist_ce.config import Config
from mnist_ce.evaluation.comparison import (
    SIGNIFICANCE_LEVEL,
    GroupDifference,
    compare_groups,
    holm,
    p_text,
)
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.report.plots.canvas import Heading
from mnist_ce.report.plots.curves import RunMetrics, Series, draw_curves
from mnist_ce.runs.groups import RunGroup, group_runs
from mnist_ce.runs.records import RunRecord

PLOTS = ("confusion_matrix", "mistakes", "weights", "calibration")
MISSING = "–"


@dataclass(frozen=True)
class ReportedRun:
    """A run as read from its directory."""

    path: Path
    record: RunRecord
    metrics: RunMetrics
    config: str  # the text of config.toml
    plots: Mapping[str, bytes]  # PNG files by name: `curves`, and those of `PLOTS` that exist
    is_right: Tensor | None  # by test image, bool [n]; None without the images

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def result(self) -> tuple[int, int] | None:
        """The numbers of correct predictions and of test images, where both are plausible."""
        correct, total = self.record.test_correct, self.record.test_total
        if correct is None or total is None or not 0 <= correct <= total or not total:
            return None
        return correct, total

    @property
    def accuracy(self) -> float | None:
        return self.result[0] / self.result[1] if self.result else None

    @property
    def measured(self) -> list[str]:
        """The columns of `metrics.csv` that have a value."""
        rows = self.metrics.epochs
        return [key for key in rows[0] if any(row.get(key) is not None for row in rows)]


def report_page(runs: Sequence[ReportedRun]) -> str:
    """Return a self-contained HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mnist_ce.report", "")
    jinja = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters |= {
        "base64": lambda png: base64.b64encode(png).decode(),
        "quote": lambda path: shlex.quote(str(path)),
        "number": lambda value, form: MISSING if value is None else form % value,
        "text": _text,
        "p_text": p_text,
    }
    title, sections, curves = runs[0].name, {"Plots": [*PLOTS]}, runs[0].plots["curves"]
    if len(runs) > 1:
        title = f"{len(runs)} runs"
        sections = {name.replace("_", " ").capitalize(): [name] for name in PLOTS}
        series = [Series(run.name, [run.metrics]) for run in runs]
        curves = draw_curves(Heading("Learning curves", title), series)
    groups = group_runs((run.name, run.record) for run in runs)
    if all(len(group.names) == 1 for group in groups):
        groups = []
    settings = [_settings(run.record) for run in runs]
    return jinja.get_template("report.html.j2").render(
        title=title,
        runs=runs,
        best={
            "accuracy": _best((run.accuracy for run in runs), max),
            "test_loss": _best((run.record.test_loss for run in runs), min),
            "train_seconds": _best((run.record.train_seconds for run in runs), min),
        },
        interval=wilson_interval,
        sections=sections,
        curves=curves,
        groups=groups,
        group_curves=_group_curves(groups, runs) if groups else b"",
        group_differences=_group_differences(groups, runs),
        significance_level=SIGNIFICANCE_LEVEL,
        differences=[row for row in _differences(*settings) if not row[0].startswith("run.")],
        changed_settings=_changed_settings,
        missing=MISSING,
    )


def _best(
    values: Iterable[float | None], choose: Callable[[Sequence[float]], float]
) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if len(known) > 1 else None


def _group_curves(groups: Sequence[RunGroup], runs: Sequence[ReportedRun]) -> bytes:
    metrics = {run.name: run.metrics for run in runs}
    series = [
        Series(f"{group.label} (n = {len(group.names)})", [metrics[name] for name in group.names])
        for group in groups
    ]
    return draw_curves(Heading("Learning curves", "mean over the seeds"), series)


def _group_differences(
    groups: Sequence[RunGroup], runs: Sequence[ReportedRun]
) -> list[tuple[str, str, GroupDifference, float]]:
    """Return for each pair of groups: the better, the other, their difference, Holm's p-value."""
    is_right = {run.name: run.is_right for run in runs if run.is_right is not None}
    tested = [
        (group, torch.stack([is_right[name] for name in group.names]))  # [seeds, n]
        for group in groups
        if len(group.names) > 1 and is_right.keys() >= set(group.names)
    ]
    pairs = [
        sorted(pair, key=lambda item: -float(item[1].double().mean()))
        for pair in itertools.combinations(tested, 2)
        if len({(g.records[0].dataset_digest, str(g.records[0].class_names)) for g, _ in pair}) == 1
    ]
    differences = [compare_groups(a, b) for (_, a), (_, b) in pairs]
    p_values = holm([difference.p_value for difference in differences])
    return [
        (a.label, b.label, difference, p_value)
        for ((a, _), (b, _)), difference, p_value in zip(pairs, differences, p_values, strict=True)
    ]


def _settings(record: RunRecord) -> dict[str, str]:
    return {key: _text(value) for key, value in record.flat_config.items()}


def _differences(*settings: Mapping[str, str]) -> list[list[str]]:
    """Return keys and values of the settings that are not equal in all."""
    keys = dict.fromkeys(itertools.chain(*settings))
    rows = [[key, *(one.get(key, MISSING) for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _changed_settings(record: RunRecord) -> list[list[str]]:
    settings, defaults = _settings(record), _settings(RunRecord(config=Config().to_dict()))
    return _differences(settings, {key: v for key, v in defaults.items() if key in settings})


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"
