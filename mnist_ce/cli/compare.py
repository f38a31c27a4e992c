"""`mnist-ce compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.evaluate import accuracy_text
from mnist_ce.cli.printing import note, print_json, print_table
from mnist_ce.system.text import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison, MultipleComparison


def compare(
    networks: Annotated[
        list[str], Argument(metavar="A B...", help=options.CHECKPOINT_HELP, show_default=False)
    ],
    split: Annotated[str, Option(help="train, validation or test.")] = "test",
    dataset: Annotated[
        str | None, Option(help="Another dataset, as in train.", show_default="the runs' own")
    ] = None,
    limit: Annotated[
        int, Option(min=0, help="Images to list; --json lists all.", metavar="N")
    ] = 20,
    plot: Annotated[
        str | None,
        Option(help="Draw the images with different predictions as a PNG.", metavar="FILE"),
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
    if not 2 <= len(networks) <= 26:
        raise typer.BadParameter("name 2 to 26 networks")
    from mnist_ce.evaluation.comparison import Comparison, compare_all
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        compared = compare_all(
            networks, split=split, dataset=dataset, data_dir=data_dir, output=output, device=device
        )
    if plot is not None:
        from mnist_ce.report.plots.grids import draw_differences
        from mnist_ce.system.files import write_atomically

        write_atomically(Path(plot), draw_differences(compared))
        note(f"plot in {plot}")
    two = Comparison(*compared.reports) if len(networks) == 2 else None
    if json:
        print_json((two or compared).to_dict())
        return
    a, letters = compared.reports[0], [chr(65 + n) for n in range(len(networks))]
    typer.echo(f"{a.dataset}, {a.split} split, {a.result.num_examples:,} images")
    for letter, report in zip(letters, compared.reports, strict=True):
        label = truncate_middle(sanitize(report.trained.label), 77)
        typer.echo(f"{letter}  {label}\n   {accuracy_text(report)}")
    if two is not None:
        _print(two, limit)
    else:
        _print_several(compared, letters, limit)
    if 0 < limit < (num_all := len(compared.differing)):
        typer.echo(f"and {num_all - limit:,} more: --limit {num_all}, or --json")


def _print_several(compared: MultipleComparison, letters: list[str], limit: int) -> None:
    from mnist_ce.evaluation.comparison import SIGNIFICANCE_LEVEL, p_text

    rows: list[tuple[str, ...]] = [
        ("pair", "only first right", "only second right", "McNemar, Holm-corrected")
    ]
    for a, b, comparison, p_value in compared.pairs:
        only = [f"{comparison.outcomes[f'only_{letter}_right']:,}" for letter in "ab"]
        verdict = "significant" if p_value < SIGNIFICANCE_LEVEL else "not significant"
        rows.append((f"{letters[a]} {letters[b]}", *only, f"{p_text(p_value)}, {verdict}"))
    print_table(rows, "<>><")
    names, labels = compared.reports[0].class_names, compared.reports[0].result.labels.tolist()
    shown = sorted(compared.differing)[:limit]
    if not shown:
        return
    typer.echo(f"\nimages with different predictions ({len(compared.differing):,})")
    predictions = compared.predictions.tolist()
    table = [("index", "truth", *letters)] + [
        (str(index), *(names[n] for n in (labels[index], *predictions[index]))) for index in shown
    ]
    print_table(table, ">" + "<" * (1 + len(letters)))


def _print(comparison: Comparison, limit: int) -> None:
    outcomes, found, names = comparison.outcomes, comparison.differences, comparison.a.class_names
    typer.echo(
        f"both right {outcomes['both_right']:,}, only A {outcomes['only_a_right']:,}, "
        f"only B {outcomes['only_b_right']:,}, both wrong {outcomes['both_wrong']:,}"
    )
    typer.echo(comparison.verdict)
    if not found or not limit:
        return
    width = max(map(len, (*names, "truth")))
    typer.echo(f"\nimages with different predictions ({len(found):,})")
    typer.echo(f"{'index':>6}  {'truth':<{width}}  {'A':<{width}}  B")
    for item in found[:limit]:
        truth, by_a, by_b = (names[n] for n in (item.label, item.a, item.b))
        typer.echo(f"{item.index:6d}  {truth:<{width}}  {by_a:<{width}}  {by_b}")
