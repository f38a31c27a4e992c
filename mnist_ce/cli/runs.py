"""`mnist-ce runs`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mnist_ce.cli import options
from mnist_ce.cli.printing import note, print_json
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, list_runs
from mnist_ce.system.errors import RunError
from mnist_ce.system.text import sanitize, truncate_middle

HEAD = ("name", "dataset", "recipe", "epochs", "test", "time", "state")
NUMBERS = ("epochs", "test", "time")
SHORTEST = 5  # what is left of a dataset's or recipe's name in a narrow terminal


def runs(
    output: Annotated[
        str, typer.Option(help="Folder that holds the runs.", metavar="DIR")
    ] = "checkpoints",
    json: options.Json = False,
) -> None:
    """List the runs, newest first.

    A run that is resumable goes on with: mnist-ce train --resume NAME. A wider
    terminal, or --json, shows long names whole.

    Examples:

      mnist-ce runs

      mnist-ce runs --json
    """
    found = [_summary(run, record) for run, record in list_runs(Path(output))]
    if json:
        print_json(found)
        return
    if not found:
        note(f"there is no run in {output}: train one with 'mnist-ce train'")
        return
    width = shutil.get_terminal_size((80, 24)).columns
    for line in _lines([_cells(item) for item in found], width):
        typer.echo(line)


def _summary(run: RunDir, record: RunRecord) -> dict[str, Any]:
    """Return what is to be told of a run: plain values, None where the record does not say."""
    try:
        num_epochs_done = len(run.read_metrics())
    except RunError:
        num_epochs_done = 0
    return {
        "name": run.name,
        "path": str(run.path),
        "dataset": record.dataset,
        "recipe": record.recipe,
        "objective": record.objective,
        "created": record.created,
        "epochs_done": num_epochs_done,
        "epochs": record.epochs,
        "test_accuracy": record.test_accuracy,
        "train_seconds": record.train_seconds,
        "state": _state(run, record),
        "weights_sha256": record.weights_sha256,
    }


def _state(run: RunDir, record: RunRecord) -> str:
    """Return `finished`, `running`, `resumable`, or `lost` where nothing can be continued."""
    if run.is_locked():
        return "running"
    if record.is_finished:
        return "finished"
    return "resumable" if run.resume_path.is_file() else "lost"


def _cells(summary: Mapping[str, Any]) -> dict[str, str]:
    def shown(key: str, form: str) -> str:
        return "-" if summary[key] is None else form.format(summary[key])

    return {
        "name": sanitize(summary["name"]),
        "dataset": sanitize(summary["dataset"] or "-"),
        "recipe": sanitize(summary["recipe"] or "-"),
        "epochs": f"{summary['epochs_done']}/{shown('epochs', '{}')}",
        "test": shown("test_accuracy", "{:.2%}"),
        "time": shown("train_seconds", "{:.1f} s"),
        "state": summary["state"],
    }


def _lines(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Return the table, cut to a width: first dataset and recipe get shorter, then the names.

    A generated name begins with both, so that little is lost.
    """
    table = [dict(zip(HEAD, HEAD, strict=True)), *rows]
    widths = {key: max(len(row[key]) for row in table) for key in HEAD}
    for key, least in (("recipe", SHORTEST), ("dataset", SHORTEST), ("name", 12)):
        excess = sum(widths.values()) + 2 * (len(HEAD) - 1) - width
        widths[key] = min(widths[key], max(widths[key] - excess, least))
    return ["  ".join(_cell(key, row[key], widths[key]) for key in HEAD).rstrip() for row in table]


def _cell(key: str, text: str, width: int) -> str:
    if key in NUMBERS:
        return text.rjust(width)
    if key == "name":
        return truncate_middle(text, width).ljust(width)
    return (text if len(text) <= width else f"{text[: width - 1]}…").ljust(width)
