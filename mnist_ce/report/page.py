"""HTML page about one or several runs.

The template escapes all text, and the page's content security policy forbids scripts and external
resources, so a run directory from an unknown source is safe to look at.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ce.config import Config
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.report.plots.curves import RunCurves
from mnist_ce.runs.groups import RunGroup
from mnist_ce.runs.records import RunRecord

PLOTS = ("confusion_matrix", "mistakes", "weights", "calibration")
SHOWN = (
    *("created", "device", "threads", "step", "seed", "num_parameters", "git_commit"),
    *("dataset_digest", "weights_sha256", "command"),
)
MISSING = "–"


@dataclass(frozen=True)
class GroupSection:
    """The part of the page about groups of runs."""

    groups: Sequence[RunGroup]
    curves: Sequence[bytes]  # PNG files
    sentences: Sequence[str]  # one per pair of groups


@dataclass(frozen=True)
class ReportedRun:
    """A run as read from its directory."""

    path: Path
    record: RunRecord
    curves: RunCurves
    config: str  # the text of config.toml
    plots: Mapping[str, bytes]  # PNG files by name, of those in PLOTS

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    @property
    def command(self) -> str:
        """The command that repeats the run under a new name."""
        return f"mnist-ce train --config {shlex.quote(str(self.path / 'config.toml'))}"

    @property
    def result(self) -> tuple[int, int] | None:
        """The numbers of correct predictions and of test images, where both are plausible."""
        correct, total = self.record.test_correct, self.record.test_total
        if correct is None or total is None or not 0 <= correct <= total or not total:
            return None
        return correct, total

    @property
    def accuracy(self) -> float:
        """The share of correct predictions; 0 without a result."""
        correct, total = self.result or (0, 1)
        return correct / total


def report_page(
    runs: Sequence[ReportedRun], curves: Mapping[str, bytes], groups: GroupSection | None = None
) -> str:
    """Return a self-contained HTML page; `curves` are PNG files by what is drawn in them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mnist_ce.report", "")
    jinja = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters["base64"] = lambda png: base64.b64encode(png).decode()
    jinja.filters["quote"] = lambda path: shlex.quote(str(path))
    differences = _differences(*(_settings(run.record) for run in runs))
    return jinja.get_template("report.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        results=[_results(run) for run in runs],
        best=_best(runs),
        sections=_sections(runs, curves),
        groups=groups,
        differences=[row for row in differences if not row[0].startswith("run.")],
        epochs=_epochs,
        changed_settings=_changed_settings,
        environment=_environment,
    )


def _best(runs: Sequence[ReportedRun]) -> set[tuple[int, int]]:
    """Return the cells of the best results of several runs, by row and column of `_results`."""
    keys: dict[int, Callable[[ReportedRun], float | None]] = {
        1: lambda run: -run.accuracy if run.result else None,
        4: lambda run: run.record.test_loss,
        6: lambda run: run.record.train_seconds,
    }
    cells = set()
    for column, key in keys.items():
        values = {row: value for row, run in enumerate(runs) if (value := key(run)) is not None}
        if len(values) > 1:
            best = min(values.values())
            cells |= {(row, column) for row, value in values.items() if value == best}
    return cells


def _sections(
    runs: Sequence[ReportedRun], curves: Mapping[str, bytes]
) -> dict[str, list[tuple[str, str, bytes]]]:
    """Return the figures by heading: name, text and PNG; those of several runs side by side."""
    is_one = len(runs) == 1
    by_epoch = [(name, f"{name} by epoch", png) for name, png in curves.items()]
    sections = {"Plots" if is_one else "Curves": by_epoch}
    for name in PLOTS:
        title = "Plots" if is_one else name.replace("_", " ").capitalize()
        sections.setdefault(title, []).extend(
            (name, f"{name} of {run.name}", run.plots[name]) for run in runs if name in run.plots
        )
    return sections


def _accuracy(run: ReportedRun) -> list[str]:
    if run.result is None:
        return [MISSING] * 3
    correct, total = run.result
    low, high = wilson_interval(correct, total)
    interval = f"{100 * low:.2f} to {100 * high:.2f} %"
    return [f"{100 * correct / total:.2f} %", f"{correct:,} of {total:,}", interval]


def _results(run: ReportedRun) -> list[object]:
    record = run.record
    return [
        run.name,
        *_accuracy(run),
        MISSING if record.test_loss is None else f"{record.test_loss:.4f}",
        len(run.curves.rows),
        MISSING if record.train_seconds is None else f"{record.train_seconds:.1f} s",
        record.dataset or MISSING,
        record.recipe or MISSING,
    ]


def _epochs(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    columns = [key for key in rows[0] if any(row.get(key) is not None for row in rows)]
    return [[column.replace("_", " ") for column in columns]] + [
        [MISSING if row.get(key) is None else f"{row[key]:.6g}" for key in columns] for row in rows
    ]


def _settings(record: RunRecord) -> dict[str, str]:
    return {key: _plain(value) for key, value in record.flat_config.items()}


def _differences(*settings: Mapping[str, str]) -> list[list[str]]:
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [[key, *(one.get(key, MISSING) for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _changed_settings(record: RunRecord) -> list[list[str]]:
    own, defaults = _settings(record), _settings(RunRecord(config=Config().to_dict()))
    return _differences(own, {key: value for key, value in defaults.items() if key in own})


def _environment(record: RunRecord) -> list[list[str]]:
    rows = {key.replace("_", " "): record[key] for key in SHOWN if record[key] is not None}
    return [[key, _plain(value)] for key, value in (rows | (record.versions or {})).items()]


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"
