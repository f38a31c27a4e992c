"""`mnist-ce evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json, print_table, write_plot
from mnist_ce.system.errors import RunError

if TYPE_CHECKING:
    from mnist_ce.evaluation.evaluate import EvaluationReport


def evaluate(
    checkpoint: options.CheckpointArgument = None,
    checkpoint_option: Annotated[
        str | None, Option("--checkpoint", help="The same, as an option.", metavar="FILE")
    ] = None,
    split: options.Split = "test",
    dataset: options.OtherDataset = None,
    plot: Annotated[Path | None, options.plot("Draw a reliability diagram.")] = None,
    verify: Annotated[
        bool, Option("--verify", help="Verify the record and files of a finished run.")
    ] = False,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    input_mean: options.InputMean = 0.0,
    input_std: options.InputStd = 1.0,
    json: options.Json = False,
) -> None:
    """Measure a network on the images it was not trained on.

    Examples:
      mnist-ce evaluate
      mnist-ce evaluate my-run --split train --json
      mnist-ce evaluate my-run --plot reliability.png
      mnist-ce evaluate my-run --verify
    """
    if checkpoint is not None and checkpoint_option is not None:
        raise typer.BadParameter("name the checkpoint once")
    name = checkpoint or checkpoint_option
    from mnist_ce.system.device import use_threads

    if verify:
        if name is None:
            raise typer.BadParameter("--verify needs the name of a run")
        if split != "test" or dataset or plot or (input_mean, input_std) != (0.0, 1.0):
            raise typer.BadParameter("--verify is for a run as it is, on its own data")
        with use_threads(threads):
            _verify(name, json, output=output, data_dir=data_dir, device=device)
        return
    from mnist_ce.evaluation.evaluate import evaluate as run_evaluation
    from mnist_ce.runs.load_model import load_model

    with use_threads(threads):
        trained = load_model(name, output, input_mean=input_mean, input_std=input_std)
        report = run_evaluation(
            trained, split=split, dataset=dataset, data_dir=data_dir, device=device
        )
    note(f"checkpoint {trained.path}")
    if plot is not None:
        from mnist_ce.report.plots.evaluation import draw_reliability

        write_plot(plot, draw_reliability(report))
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if report.result.accuracy < 0.5 and input_mean == 0.0 and input_std == 1.0:
        note(
            "hint: under 50 % right. A network trained on normalised pixels needs "
            "--input-mean and --input-std (often 0.1307 and 0.3081)"
        )


def _verify(name: str, json: bool, **options: Any) -> None:  # noqa: ANN401
    from mnist_ce.evaluation.verification import verify

    run, checks = verify(name, **options)
    failed = ", ".join(check.name for check in checks if not check.ok)
    if json:
        content = [{"name": c.name, "ok": c.ok, "found": c.detail} for c in checks]
        print_json({"run": str(run.path), "verified": not failed, "checks": content})
    else:
        for check in checks:
            echo(f"{'ok' if check.ok else 'FAIL':<4}  {check.name:<8} {check.detail}")
    if failed:
        raise RunError(f"run {run.path} is not as recorded: {failed}")
    if not json:
        echo(f"{run.path} verified")


def _print_report(report: EvaluationReport) -> None:
    result = report.result
    echo(
        f"{report.dataset}, {report.split} split, {result.num_examples:,} images\n"
        f"average loss  {result.loss:.4f}\n"
        f"accuracy      {accuracy_text(report)}"
    )
    for temperature, calibration in report.calibrations.items():
        name = "calibration" if temperature == report.trained.temperature else "uncalibrated"
        low, high = calibration.ece_interval
        text = f"{name:<14}error {calibration.ece:.2%}, 95 % interval {low:.2%} to {high:.2%}"
        if len(report.calibrations) > 1:  # else the NLL is the loss
            text += f", NLL {calibration.nll:.4f}, T = {temperature:.4g}"
        echo(text)
    if (binary := report.binary) is not None:
        echo(
            f"precision     {binary.precision:.4f}\n"
            f"recall        {binary.recall:.4f}\n"
            f"F1            {binary.f1:.4f}\n"
            f"ROC AUC       {binary.roc_auc:.5f}\n"
            f"avg precision {binary.average_precision:.5f}\n"
            f"errors        {binary.false_positives} false yes, {binary.false_negatives} false no"
        )
    echo()
    rows = [
        (one.class_name, *(f"{x:.4f}" for x in (one.precision, one.recall, one.f1)), f"{one.count}")
        for one in report.per_class
    ]
    print_table([("class", "precision", "recall", "F1", "count"), *rows], "<>>>>")
    echo("\nconfusion matrix (row: truth, column: prediction)")
    # For ten classes within 80 columns.
    cell = max(len(str(count)) for row in report.confusion for count in row) + 1
    width = max(map(len, report.class_names))
    echo(" " * width + "".join(f"{name[: cell - 1]:>{cell}}" for name in report.class_names))
    for name, row in zip(report.class_names, report.confusion, strict=True):
        echo(f"{name:<{width}}" + "".join(f"{count or '.':>{cell}}" for count in row))


def accuracy_text(report: EvaluationReport) -> str:
    """Return the number and fraction of correct predictions, with the interval of the fraction."""
    result, (low, high) = report.result, report.accuracy_interval
    return (
        f"{result.num_correct}/{result.num_examples} ({result.accuracy:.2%}), "
        f"95 % interval {low:.2%} to {high:.2%}"
    )
