"""`mnist-ce evaluate` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import csv_text, echo, note, print_json, print_table, show, write_plot
from mnist_ce.system.errors import RunError
from mnist_ce.system.files import write_atomically
from mnist_ce.system.text import percent, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison
    from mnist_ce.evaluation.evaluate import EvaluationReport


def evaluate(
    network: dict[str, Any],
    checkpoint: options.CheckpointArgument = None,
    checkpoint_option: Annotated[
        str | None, Option("--checkpoint", help="The same, as an option.")
    ] = None,
    split: options.Split = "test",
    dataset: options.OtherDataset = None,
    plot: options.Plot = None,
    predictions: Annotated[Path | None, Option(help="Write each image's probabilities.")] = None,
    verify: Annotated[
        bool, Option("--verify", help="Verify the record and files of a run.")
    ] = False,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
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

    place: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "device": device}
    if verify:
        if name is None or split != "test" or plot or network["model"] or network["activation"]:
            raise typer.BadParameter("--verify needs the name of a run, and no other options")
        from mnist_ce.evaluation.verification import verify as verify_run

        with use_threads(threads):
            run, checks = verify_run(name, output=output, **place)
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
        return
    from mnist_ce.evaluation.evaluate import evaluate as run_evaluation
    from mnist_ce.runs.load_model import load_model

    with use_threads(threads):
        trained = load_model(name, output, **network)
        report = run_evaluation(trained, split=split, **place)
    note(f"checkpoint {trained.path}")
    if plot is not None:
        from mnist_ce.report.plots.evaluation import draw_reliability

        write_plot(plot, draw_reliability(report))
    if predictions is not None:
        write_atomically(predictions, _predictions_csv(report))
        note(f"predictions in {predictions}")
    show(json, report.to_dict, lambda: _print_report(report))


def _predictions_csv(report: EvaluationReport) -> str:
    names, result = report.class_names, report.result
    rows: list[list[Any]] = [["index", "label", "prediction", *names]]
    columns = (result.labels, result.predictions, report.probabilities)
    for label, prediction, p in zip(*(column.tolist() for column in columns), strict=True):
        rows.append([len(rows) - 1, names[label], names[prediction], *(f"{x:.6g}" for x in p)])
    return csv_text(rows)


def _print_report(report: EvaluationReport) -> None:
    result = report.result
    rows = {"average loss": f"{result.loss:.4f}", "accuracy": _accuracy_text(report)}
    for temperature, calibration in report.calibrations.items():
        name = "calibration" if temperature == report.trained.temperature else "uncalibrated"
        low, high = (percent(limit, 2) for limit in calibration.ece_interval)
        rows[name] = f"error {percent(calibration.ece, 2)}, 95 % interval {low} to {high}"
        if len(report.calibrations) > 1:  # else the NLL is the loss
            rows[name] += f", NLL {calibration.nll:.4f}, T = {temperature:.4g}"
    if (binary := report.binary) is not None:
        for name, value in (
            ("precision", binary.precision),
            ("recall", binary.recall),
            ("F1", binary.f1),
            ("ROC AUC", binary.roc_auc),  # None where one of the classes has no image
            ("avg precision", binary.average_precision),
        ):
            rows[name] = "-" if value is None else f"{value:.5f}"
        rows["errors"] = f"{binary.false_positives} false yes, {binary.false_negatives} false no"
    echo(f"{report.dataset}, {report.split} split, {result.num_examples:,} images")
    for name, text in rows.items():
        echo(f"{name:<14}{text}")
    echo()
    print_table(report.table(), "<>>>>")
    echo("\nconfusion matrix (row: truth, column: prediction)")
    names = report.class_names
    width = max(len(str(count)) for row in report.confusion for count in row)
    table = [["", *(name[:width] for name in names)]]  # ten classes within 80 columns
    for name, row in zip(names, report.confusion, strict=True):
        table.append([name, *(str(count or ".") for count in row)])
    print_table(table, "<" + ">" * len(names))


def _accuracy_text(report: EvaluationReport) -> str:
    result, (low, high) = report.result, report.accuracy_interval
    return (
        f"{percent(result.accuracy, 2)}, {result.num_correct:,} of {result.num_examples:,}, "
        f"95 % interval {percent(low, 2)} to {percent(high, 2)}"
    )


def compare(
    network: dict[str, Any],
    checkpoints: Annotated[
        list[str], Argument(metavar="A B...", help=options.CHECKPOINT_HELP, show_default=False)
    ],
    split: options.Split = "test",
    dataset: options.OtherDataset = None,
    limit: Annotated[int, Option(min=0, help="Images to list; --json lists all.")] = 20,
    plot: options.Plot = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Compare networks on the same images, with a test of significance.

    Examples:
      mnist-ce compare my-run mnist
      mnist-ce compare first-run second-run third-run --plot differences.png
    """
    if not 2 <= len(checkpoints) <= 26:
        raise typer.BadParameter("name 2 to 26 networks")
    from mnist_ce.evaluation.comparison import compare as compare_models
    from mnist_ce.system.device import use_threads

    place: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "device": device}
    with use_threads(threads):
        comparison = compare_models(*checkpoints, split=split, output=output, **place, **network)
    if plot is not None:
        from mnist_ce.report.plots.images import draw_differences

        write_plot(plot, draw_differences(comparison))
    show(json, comparison.to_dict, lambda: _print_comparison(comparison, limit))


def _print_comparison(comparison: Comparison, limit: int) -> None:
    from mnist_ce.evaluation.comparison import p_text

    reports, pairs, indices = comparison.reports, comparison.pairs, sorted(comparison.differing)
    letters = [chr(65 + number) for number in range(len(reports))]
    first = reports[0]
    echo(f"{first.dataset}, {first.split} split, {first.result.num_examples:,} images")
    for letter, report in zip(letters, reports, strict=True):
        label = truncate_middle(report.trained.label, 77)
        echo(f"{letter}  {label}\n   {_accuracy_text(report)}")
    head = ("both right", "first alone", "second alone", "neither", "McNemar, Holm-corrected")
    table = [["pair", *head]]
    for pair in pairs:
        counts = (pair.both_right, pair.only_a_right, pair.only_b_right, pair.both_wrong)
        p_value = f"{p_text(pair.holm_p_value)}, {'' if pair.is_significant else 'not '}significant"
        name = f"{letters[pair.a]} {letters[pair.b]}"
        table.append([name, *(f"{count:,}" for count in counts), p_value])
    print_table(table, "<>>>>>")
    if len(pairs) == 1:
        echo(pairs[0].verdict)
    if not indices or not limit:
        return
    echo(f"\nimages with different predictions ({len(indices):,})")
    labels, predictions = comparison.labels.tolist(), comparison.predictions.tolist()
    classes = [(f"{n:5d}", labels[n], *predictions[n]) for n in indices[:limit]]
    rows = [(index, *(first.class_names[c] for c in row)) for index, *row in classes]
    print_table([("index", "truth", *letters), *rows], ">" + "<" * (1 + len(letters)))
    if limit < len(indices):
        echo(f"and {len(indices) - limit:,} more: --limit {len(indices)}, or --json")
