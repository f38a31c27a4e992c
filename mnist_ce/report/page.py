"""HTML page about one or several runs.

The template escapes all text, and the page's content security policy forbids scripts and external
resources, so a run directory from an unknown source is safe to look at.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_ce.config import Config
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.runs.groups import RunGroup
from mnist_ce.runs.records import RunRecord

PLOTS = ("curves", "confusion_matrix", "mistakes", "weights", "calibration")
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

    name: str
    record: RunRecord
    rows: Sequence[Mapping[str, Any]]  # of metrics.csv
    config: str  # the text of config.toml
    plots: Mapping[str, bytes]  # PNG files by name, of those in PLOTS


def report_page(
    runs: Sequence[ReportedRun], overlay: bytes | None, groups: GroupSection | None = None
) -> str:
    """Return a self-contained HTML page; `overlay` is a PNG file of the curves of several runs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mnist_ce.report", "")
    jinja = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters["base64"] = lambda png: base64.b64encode(png).decode()
    differences = _differences(*(_settings(run.record) for run in runs))
    return jinja.get_template("report.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        results=[_results(run) for run in runs],
        overlay=overlay,
        groups=groups,
        differences=[row for row in differences if not row[0].startswith("run.")],
        epochs=_epochs,
        changed_settings=_changed_settings,
        environment=_environment,
    )


def _results(run: ReportedRun) -> list[object]:
    record = run.record
    correct, total = record.test_correct, record.test_total
    accuracy = [MISSING] * 3
    if correct is not None and total is not None and 0 <= correct <= total > 0:
        low, high = wilson_interval(correct, total)
        interval = f"{100 * low:.2f} to {100 * high:.2f} %"
        accuracy = [f"{100 * correct / total:.2f} %", f"{correct:,} of {total:,}", interval]
    return [
        run.name,
        *accuracy,
        MISSING if record.test_loss is None else f"{record.test_loss:.4f}",
        len(run.rows),
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
