"""`mnist-ce runs`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json, print_table
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.runs.groups import RunGroup
    from mnist_ce.runs.records import RunRecord
    from mnist_ce.runs.run_dir import RunDir

HEAD = ("name", "dataset", "recipe", "epochs", "test", "time", "state")
# The columns that a narrow terminal cuts, in this order, and the characters that stay at least. A
# generated name begins with the dataset and the recipe, so that their columns are cut first.
SHORTENED = (("recipe", 5), ("dataset", 5), ("name", 12))


def runs(
    output: options.Output = "checkpoints",
    delete: Annotated[
        str | None, Option(help="Delete this run, with all its files.", metavar="NAME")
    ] = None,
    yes: Annotated[bool, Option("--yes", help="Delete without asking.")] = False,
    json: options.Json = False,
) -> None:
    """List the runs, newest first, and the mean of those that differ in the seed alone.

    A run that is resumable goes on with: mnist-ce train --resume NAME. A wider
    terminal, or --json, shows long names whole.

    Examples:
      mnist-ce runs
      mnist-ce runs --json
      mnist-ce runs --delete my-run
    """
    from mnist_ce.runs.groups import group_runs
    from mnist_ce.runs.run_dir import list_runs

    if delete is not None:
        _delete(delete, Path(output), is_confirmed=yes, json=json)
        return
    listed = list_runs(Path(output))
    rows = [_run_row(run, record) for run, record in listed]
    groups = group_runs((run.name, record) for run, record in listed)
    groups = [group for group in groups if len(group.names) > 1]
    if json:
        of_run = {name: group.to_dict() for group in groups for name in group.names}
        print_json([{**run, "group": of_run.get(run["name"])} for run in rows])
        return
    if not rows:
        note(f"there is no run in {output}: train one with 'mnist-ce train'")
        return
    table = [HEAD, *map(_cells, rows)]
    print_table(_shorten(table, shutil.get_terminal_size((80, 24)).columns), "<<<>>><")
    if groups:
        echo()
        print_groups(groups)


def print_groups(groups: Sequence[RunGroup]) -> None:
    """Print the mean ± standard deviation of groups of runs as a table."""
    rows = [("runs that differ in the seed alone", "n", "test accuracy", "time of one")]
    for group in groups:
        seconds = group.mean("train_seconds")
        time = "-" if seconds is None else f"{seconds:.1f} s"
        rows.append((group.label, str(len(group.names)), group.accuracy_text(), time))
    print_table(rows, "<>>>")


def _delete(name: str, output: Path, *, is_confirmed: bool, json: bool) -> None:
    from mnist_ce.runs.run_dir import FINISHED, LATEST, delete_run, find_run, is_shipped

    if name == LATEST or is_shipped(run := find_run(name, output, FINISHED)):
        raise UsageError(f"--delete {name}: give the name of a run that 'mnist-ce runs' lists")
    if not is_confirmed:
        if not sys.stdin.isatty():
            raise UsageError(f"--delete {name} asks on a terminal only; add --yes")
        typer.confirm(
            f"Delete run {sanitize(str(run.path))} with all its files?", abort=True, err=True
        )
    delete_run(run)
    if json:
        print_json({"deleted": str(run.path)})
    else:
        echo(f"deleted {run.path}")


def _run_row(run: RunDir, record: RunRecord) -> dict[str, Any]:
    from mnist_ce.runs.run_dir import run_state

    num_epochs_done = 0
    with contextlib.suppress(RunError):
        num_epochs_done = len(run.read_metrics())
    return {
        "name": run.name,
        "path": str(run.path),
        **{key: record[key] for key in ("dataset", "recipe", "objective", "created")},
        "epochs_done": num_epochs_done,
        **{key: record[key] for key in ("epochs", "test_accuracy", "train_seconds")},
        "state": run_state(run, record),
        "weights_sha256": record.weights_sha256,
    }


def _cells(summary: Mapping[str, Any]) -> tuple[str, ...]:
    epochs, accuracy, seconds = (summary[k] for k in ("epochs", "test_accuracy", "train_seconds"))
    return (
        *(summary[key] or "-" for key in HEAD[:3]),
        f"{summary['epochs_done']}/{'-' if epochs is None else epochs}",
        "-" if accuracy is None else f"{accuracy:.2%}",
        "-" if seconds is None else f"{seconds:.1f} s",
        summary["state"],
    )


def _shorten(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Cut the longest cells of some columns until the table fits a width."""
    columns = dict(zip(HEAD, map(list, zip(*rows, strict=True)), strict=True))
    for name, min_width in SHORTENED:
        total = sum(max(map(len, cells)) for cells in columns.values()) + 2 * (len(HEAD) - 1)
        longest = max(map(len, columns[name]))
        limit = max(longest - max(total - width, 0), min_width)
        cut = truncate_middle if name == "name" else _truncate_end
        columns[name] = [cut(cell, limit) for cell in columns[name]]
    return list(map(list, zip(*columns.values(), strict=True)))


def _truncate_end(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
