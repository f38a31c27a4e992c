"""Plots in the directory of a run, and one HTML page about one run or several.

The page's template escapes all text, and its content security policy forbids scripts and external
resources, so a run directory from an unknown source is safe to look at.
"""

from __future__ import annotations

import base64
import itertools
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_ce.config import Config
from mnist_ce.evaluation import comparison
from mnist_ce.evaluation.evaluate import EvaluationReport, evaluate
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.network.model import MLP
from mnist_ce.report.plots.curves import RunMetrics, draw_curves
from mnist_ce.report.plots.evaluation import draw_confusion_matrix, draw_reliability
from mnist_ce.report.plots.images import draw_mistakes, draw_weights
from mnist_ce.runs.groups import group_runs
from mnist_ce.runs.load_model import load_model
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import MAX_BYTES, RunDir, find_run, list_runs
from mnist_ce.system.errors import DataError, RunError, UsageError
from mnist_ce.system.files import as_path, read_regular, write_atomically
from mnist_ce.system.text import one_line, percent

PLOTS = ("confusion_matrix", "mistakes", "weights", "calibration")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportedRun:
    """A run as read from its directory."""

    path: Path
    record: RunRecord
    metrics: RunMetrics
    evaluation: EvaluationReport | None
    config: str  # the text of config.toml
    plots: Mapping[str, bytes]  # PNG files by name: `curves`, and those of `PLOTS` that exist

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def result(self) -> tuple[int, int] | None:
        """The numbers of correct predictions and of test images, where both are plausible."""
        correct, total = self.record.test_correct or 0, self.record.test_total or 0
        return (correct, total) if correct <= total and total else None

    @property
    def accuracy(self) -> float | None:
        return self.result[0] / self.result[1] if self.result else None

    @property
    def measured(self) -> list[str]:
        rows = self.metrics.epochs
        return [key for key in rows[0] if any(row.get(key) is not None for row in rows)]


def report(
    names: Sequence[str] = (),
    *,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    file: str | Path | None = None,
    model: nn.Module | str | None = None,
) -> Path:
    """Redraw the plots of runs and write one self-contained HTML file about them.

    Without names it is about the newest finished run in `output`. Without `file` it is
    `report.html` in the run's directory, or in `output` for several runs. `model` is that of the
    runs of a module: see `load_model`. A `RunError` or a `CheckpointError` if a run does not exist,
    has no weights yet, or has a damaged file.
    """
    output = as_path(output)
    runs = [find_run(name, output) for name in names]
    if not names:
        runs = [run for run, record in list_runs(output) if record.is_finished][:1]
    if not runs:
        raise RunError(f"there is no finished run in {output}: train one with 'mnist-ce train'")
    directory = runs[0].path if len(runs) == 1 else output
    path = directory / "report.html" if file is None else as_path(file)
    write_atomically(path, _page([_redraw(run, data_dir, model) for run in runs]))
    return path


def _redraw(run: RunDir, data_dir: str | Path | None, model: nn.Module | str | None) -> ReportedRun:
    logger.info(f"drawing {run.name}")
    if not run.model_path.is_file():
        raise RunError(f"run {run.path} has no model.pt yet: let it finish an epoch first")
    record, trained, evaluation = run.read_record() or RunRecord(), None, None
    try:
        name = (record.custom or {}).get("model")
        if name and model is None:
            raise UsageError(f"the network is {name}, a module of your own: see --model")
        trained = load_model(run.model_path, model=model if name else None)
        evaluation = evaluate(trained, data_dir=data_dir, device="cpu")
    except (DataError, UsageError) as error:  # a record may ask for data that is not to be had
        logger.warning(f"{run.name}: plots of test images are not redrawn: {error}")
    metrics, drawn = draw_plots(run, record, trained.model if trained else None, evaluation)
    config = read_regular(run.config_path, MAX_BYTES).decode(errors="replace")
    paths = {name: run.path / f"{name}.png" for name in ("curves", *PLOTS)}
    plots = {name: path.read_bytes() for name, path in paths.items() if path.is_file()} | drawn
    return ReportedRun(run.path, record, metrics, evaluation, config, plots)


def draw_plots(
    run: RunDir, record: RunRecord, model: nn.Module | None, evaluation: EvaluationReport | None
) -> tuple[RunMetrics, dict[str, bytes]]:
    """Draw the plots of a run into its directory; return the metrics in its files, and the PNGs.

    These are curves, weights and, of an evaluation, confusion matrix, mistakes and calibration.
    """
    metrics = RunMetrics(run.read_metrics(), run.read_steps())
    facts = [f"{record.dataset}, recipe {record.recipe}, {len(metrics.epochs)} epochs"]
    if record.test_correct is not None and record.test_total:
        correct, total = record.test_correct, record.test_total
        facts.append(f"test: {correct:,} of {total:,} correct ({percent(correct / total, 2)})")
    if record.train_seconds is not None:
        facts.append(f"{record.train_seconds:.1f} s of training")
    title, curves = f"{run.name}: learning curves", [(run.name, [metrics])]
    plots = {"curves": draw_curves(title, " · ".join(facts), curves)}
    if isinstance(model, MLP):
        weight = model.layers[0].weight.detach().numpy()  # [units, 784]
        title, dataset = f"{run.name}: weights of the first layer", f"trained on {record.dataset}"
        plots["weights"] = draw_weights(title, dataset, weight)
    if evaluation is not None:
        plots["confusion_matrix"] = draw_confusion_matrix(evaluation, run.name)
        plots["mistakes"] = draw_mistakes(evaluation, run.name)
        plots["calibration"] = draw_reliability(evaluation, run.name)
    try:
        for name, png in plots.items():
            write_atomically(run.path / f"{name}.png", png)
    except OSError as error:  # a run that may only be read can be reported elsewhere
        logger.warning(f"{run.name}: its plots are not kept there: {one_line(error)}")
    return metrics, plots


def _page(runs: Sequence[ReportedRun]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mnist_ce.report", "")
    jinja = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters |= {
        "base64": lambda png: base64.b64encode(png).decode(),
        "quote": lambda path: shlex.quote(str(path)),
        "p_text": comparison.p_text,
    }
    title, curves = runs[0].name, runs[0].plots["curves"]
    if len(runs) > 1:
        title = f"{len(runs)} runs"
        curves = draw_curves("Learning curves", title, [(run.name, [run.metrics]) for run in runs])
    differences = _differences(*(run.record.flat_config for run in runs))
    # By place: two runs may have one name.
    groups = group_runs((str(place), run.record) for place, run in enumerate(runs))
    if all(len(group.names) == 1 for group in groups):
        groups = []
    members = [(group.label, [runs[int(place)] for place in group.names]) for group in groups]
    series = [(f"{label} (n = {len(of)})", [run.metrics for run in of]) for label, of in members]
    return jinja.get_template("report.html.j2").render(
        title=title,
        runs=runs,
        interval=wilson_interval,
        plots=PLOTS,
        curves=curves,
        groups=groups,
        group_curves=draw_curves("Learning curves", title, series) if series else b"",
        group_differences=_group_differences(members),
        significance_level=comparison.SIGNIFICANCE_LEVEL,
        differences=[row for row in differences if not row[0].startswith("run.")],
        changed_settings=_changed_settings,
    )


def _group_differences(
    groups: Sequence[tuple[str, Sequence[ReportedRun]]],
) -> list[tuple[Any, ...]]:
    """Return for each pair of groups: the better, the other, their difference, Holm's p-value."""
    tested = [
        (label, [run.evaluation for run in runs if run.evaluation])
        for label, runs in groups
        if len(runs) > 1 and all(run.evaluation for run in runs)
    ]
    names, differences = [], []
    for (a, of_a), (b, of_b) in itertools.combinations(tested, 2):
        if all(report.has_images_of(of_a[0]) for report in (*of_a, *of_b)):
            right = [torch.stack([r.result.is_correct for r in one]) for one in (of_a, of_b)]
            is_a_better = right[0].double().mean() >= right[1].double().mean()
            names.append((a, b) if is_a_better else (b, a))
            differences.append(comparison.compare_groups(*right[:: 1 if is_a_better else -1]))
    p_values = comparison.holm([difference.p_value for difference in differences])
    rows = zip(names, differences, p_values, strict=True)
    return [(better, other, *rest) for (better, other), *rest in rows]


def _differences(*settings: Mapping[str, Any]) -> list[list[Any]]:
    keys = dict.fromkeys(itertools.chain(*settings))
    rows = [[key, *(one.get(key) for one in settings)] for key in keys]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def _changed_settings(record: RunRecord) -> list[list[Any]]:
    settings, defaults = record.flat_config, Config().flat()
    return _differences(settings, {key: defaults[key] for key in settings if key in defaults})
