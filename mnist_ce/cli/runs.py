"""`mnist-ce runs`, and what is made of a run: `calibrate`, `export` and `report`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json, print_table, show, warn
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import percent, sanitize

if TYPE_CHECKING:
    from mnist_ce.runs.groups import RunGroup
    from mnist_ce.runs.records import RunRecord
    from mnist_ce.runs.run_dir import RunDir

HEAD = ("name", "dataset", "recipe", "epochs", "test", "time", "state")
# What a narrow terminal leaves out first; a name that was not given says dataset and recipe, too.
OPTIONAL = [HEAD.index(name) for name in ("dataset", "recipe", "time", "epochs")]


def runs(
    output: options.Output = "checkpoints",
    delete: Annotated[str | None, Option(help="Delete this run, with all its files.")] = None,
    yes: Annotated[bool, Option("--yes", help="Delete without asking.")] = False,
    json: options.Json = False,
) -> None:
    """List the runs, newest first, and the means over seeds.

    A run that is resumable goes on with: mnist-ce train --resume NAME. A narrow
    terminal shows fewer columns.

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
    problems: list[str] = []
    listed = list_runs(Path(output), problems)
    rows = [_run_row(run, record) for run, record in listed]
    groups = group_runs((run.name, record) for run, record in listed)
    groups = [group for group in groups if len(group.names) > 1]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        warn(f"damaged, and not listed: {'; '.join(problems[:3])}{more}")
    if json:
        of_run = {name: group.to_dict() for group in groups for name in group.names}
        print_json([{**run, "group": of_run.get(run["name"])} for run in rows])
    elif not rows:
        note(f"there is no run in {output}: train one with 'mnist-ce train'")
    else:
        print_table([HEAD, *map(_cells, rows)], "<<<>>><", OPTIONAL)
    if groups and not json:
        echo()
        print_groups(groups)


def print_groups(groups: Sequence[RunGroup]) -> None:
    rows = [("runs that differ in the seed alone", "n", "test accuracy", "time of one")]
    for group in groups:
        seconds = group.mean("train_seconds")
        time = "-" if seconds is None else f"{seconds:.1f} s"
        rows.append((group.label, str(len(group.names)), group.accuracy_text(), time))
    print_table(rows, "<>>>")


def _delete(name: str, output: Path, *, is_confirmed: bool, json: bool) -> None:
    from mnist_ce.runs.run_dir import LATEST, delete_run, find_run, is_shipped

    if name == LATEST or is_shipped(run := find_run(name, output)):
        raise UsageError(f"--delete {name}: give the name of a run that 'mnist-ce runs' lists")
    if not is_confirmed:
        question = f"Delete run {sanitize(str(run.path))} with all its files?"
        typer.confirm(question, abort=True, err=True)
    delete_run(run)
    show(json, lambda: {"deleted": str(run.path)}, lambda: echo(f"deleted {run.path}"))


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


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    epochs, accuracy, seconds = (row[key] for key in ("epochs", "test_accuracy", "train_seconds"))
    return (
        *(row[key] or "-" for key in HEAD[:3]),
        f"{row['epochs_done']}/{'-' if epochs is None else epochs}",
        "-" if accuracy is None else percent(accuracy, 2),
        "-" if seconds is None else f"{seconds:.1f} s",
        row["state"],
    )


def calibrate(
    run: Annotated[str, Argument(help="The name or folder of the run.")],
    held_out: Annotated[
        list[str] | None, Option("--with", help="Fit on this run's images; may be repeated.")
    ] = None,
    model: options.Model = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Fit a temperature, so that probabilities are accuracies.

    90 % of predictions with a probability of 90 % are then right: predict divides
    the run's logits by it; no prediction changes. It is fitted to
    held-out images: those of the run itself or, for a run that was trained on all
    images, those of other runs of the same recipe.

    Examples:
      mnist-ce train --config fast --name all
      mnist-ce train --config fast --name some --set data.validation_size=5000
      mnist-ce calibrate all --with some
    """
    from mnist_ce.evaluation.temperature_scaling import calibrate as run_calibration
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        run_dir, calibration = run_calibration(
            run, held_out or (), data_dir=data_dir, output=output, model=model
        )
    if json:
        print_json(calibration.model_dump(exclude_unset=True))
    else:
        fitted = calibration.fitted_on or {}
        names = ", ".join(source["run"] for source in fitted["runs"])
        echo(
            f"temperature {calibration.temperature:.4f}, fitted to {fitted['num_images']:,} "
            f"held-out images of {fitted['dataset']} by {names}\n"
            f"NLL there   {fitted['nll_uncalibrated']:.4f} → {fitted['nll']:.4f}"
        )
    note(f"written to {run_dir.record_path}")


def export(
    network: dict[str, Any],
    checkpoint: options.CheckpointArgument = None,
    file: Annotated[
        str | None, Option(help="File to write.", show_default="the run's name with .onnx")
    ] = None,
    dataset: options.OtherDataset = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    json: options.Json = False,
) -> None:
    """Write a network as an ONNX file, checked against torch.

    Nothing is written unless ONNX Runtime gives the same predictions as torch
    on 1,000 test images. (Packages: pip install 'mnist-ce[export]')

    Examples:
      mnist-ce export
      mnist-ce export my-run --file digits.onnx
    """
    from mnist_ce.report.onnx import export as run_export
    from mnist_ce.runs.load_model import load_model

    trained = load_model(checkpoint, output, **network)
    result = run_export(trained, file=file, dataset=dataset, data_dir=data_dir)
    note(f"checkpoint {result.checkpoint}")
    text = (
        f"{result.path}  {result.num_bytes:,} bytes\n"
        f"equal predictions on {result.num_checked:,} test images, "
        f"logits within {result.max_difference:.1e}"
    )
    show(json, lambda: asdict(result), lambda: echo(text))


def report(
    runs: Annotated[
        list[str] | None,
        Argument(metavar="RUN", help="Names or folders.", show_default="the newest finished run"),
    ] = None,
    file: Annotated[
        str | None, Option(help="File to write.", show_default="report.html beside the runs")
    ] = None,
    model: options.Model = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
) -> None:
    """Redraw the plots of runs and show them in one HTML file.

    Examples:
      mnist-ce report
      mnist-ce report first-run second-run --file comparison.html
    """
    from mnist_ce.report.report import report as run_report

    path = run_report(runs or (), output=output, data_dir=data_dir, file=file, model=model)
    echo(str(path))
