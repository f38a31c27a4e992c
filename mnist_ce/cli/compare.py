"""`mnist-ce compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.evaluate import accuracy_text
from mnist_ce.cli.printing import echo, print_json, print_table, write_plot
from mnist_ce.system.text import truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison


def compare(
    checkpoints: Annotated[
        list[str], Argument(metavar="A B...", help=options.CHECKPOINT_HELP, show_default=False)
    ],
    split: options.Split = "test",
    dataset: options.OtherDataset = None,
    limit: Annotated[
        int, Option(min=0, help="Images to list; --json lists all.", metavar="N")
    ] = 20,
    plot: Annotated[
        Path | None, options.plot("Draw the images with different predictions.")
    ] = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Compare networks on the same images, and test whether differences are significant.

    Examples:
      mnist-ce compare my-run mnist
      mnist-ce compare first-run second-run third-run --plot differences.png
    """
    if not 2 <= len(checkpoints) <= 26:
        raise typer.BadParameter("name 2 to 26 networks")
    from mnist_ce.evaluation.comparison import compare as compare_models
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        comparison = compare_models(
            *checkpoints,
            split=split,
            dataset=dataset,
            data_dir=data_dir,
            output=output,
            device=device,
        )
    if plot is not None:
        from mnist_ce.report.plots.images import draw_differences

        write_plot(plot, draw_differences(comparison))
    if json:
        print_json(comparison.to_dict())
    else:
        _print_comparison(comparison, limit)


def _print_comparison(comparison: Comparison, limit: int) -> None:
    from mnist_ce.evaluation.comparison import p_text

    reports, pairs, indices = comparison.reports, comparison.pairs, sorted(comparison.differing)
    letters = [chr(65 + number) for number in range(len(reports))]
    first = reports[0]
    echo(f"{first.dataset}, {first.split} split, {first.result.num_examples:,} images")
    for letter, report in zip(letters, reports, strict=True):
        label = truncate_middle(report.trained.label, 77)
        echo(f"{letter}  {label}\n   {accuracy_text(report)}")
    if len(pairs) == 1:
        (pair,) = pairs
        echo(
            f"both right {pair.both_right:,}, only A {pair.only_a_right:,}, "
            f"only B {pair.only_b_right:,}, both wrong {pair.both_wrong:,}\n{pair.verdict}"
        )
    else:
        head = ("pair", "only first right", "only second right", "McNemar, Holm-corrected")
        rows = [
            (
                f"{letters[pair.a]} {letters[pair.b]}",
                *(f"{count:,}" for count in (pair.only_a_right, pair.only_b_right)),
                f"{p_text(pair.holm_p_value)}, {'' if pair.is_significant else 'not '}significant",
            )
            for pair in pairs
        ]
        print_table([head, *rows], "<>><")
    if not indices or not limit:
        return
    echo(f"\nimages with different predictions ({len(indices):,})")
    labels, predictions = comparison.labels.tolist(), comparison.predictions.tolist()
    classes = [(f"{n:5d}", labels[n], *predictions[n]) for n in indices[:limit]]
    rows = [(index, *(first.class_names[c] for c in row)) for index, *row in classes]
    print_table([("index", "truth", *letters), *rows], ">" + "<" * (1 + len(letters)))
    if limit < len(indices):
        echo(f"and {len(indices) - limit:,} more: --limit {len(indices)}, or --json")
