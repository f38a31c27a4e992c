"""`mnist-ce compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.evaluate import accuracy_text
from mnist_ce.cli.printing import print_json
from mnist_ce.system.errors import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison


def compare(
    a: Annotated[str, Argument(metavar="A", help=options.CHECKPOINT_HELP, show_default=False)],
    b: Annotated[str, Argument(metavar="B", help="Another one.", show_default=False)],
    split: Annotated[str, Option(help="train, validation or test.")] = "test",
    dataset: Annotated[
        str | None, Option(help="Another dataset, as in train.", show_default="the runs' own")
    ] = None,
    limit: Annotated[
        int, Option(min=0, help="Images to list; --json lists all.", metavar="N")
    ] = 20,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Compare two networks: is the difference significant?

    Examples:
      mnist-ce compare my-run mnist
      mnist-ce compare first-run second-run --limit 5
    """
    from mnist_ce.evaluation.comparison import compare as run_comparison
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        comparison = run_comparison(
            a, b, split=split, dataset=dataset, data_dir=data_dir, output=output, device=device
        )
    if json:
        print_json(comparison.to_dict())
    else:
        _print(comparison, limit)


def _print(comparison: Comparison, limit: int) -> None:
    a, outcomes, found = comparison.a, comparison.outcomes, comparison.differences
    typer.echo(f"{a.dataset}, {a.split} split, {comparison.num_images:,} images")
    for letter, report in (("A", a), ("B", comparison.b)):
        label = truncate_middle(sanitize(report.trained.label), 77)
        typer.echo(f"{letter}  {label}\n   {accuracy_text(report)}")
    typer.echo(
        f"both right {outcomes['both_right']:,}, only A {outcomes['only_a_right']:,}, "
        f"only B {outcomes['only_b_right']:,}, both wrong {outcomes['both_wrong']:,}"
    )
    typer.echo(comparison.verdict)
    if not found or not limit:
        return
    names = a.class_names
    width = max(map(len, (*names, "truth")))
    typer.echo(f"\nimages with different predictions ({len(found):,})")
    typer.echo(f"{'index':>6}  {'truth':<{width}}  {'A':<{width}}  B")
    for item in found[:limit]:
        truth, by_a, by_b = (names[n] for n in (item.label, item.a, item.b))
        typer.echo(f"{item.index:6d}  {truth:<{width}}  {by_a:<{width}}  {by_b}")
    if len(found) > limit:
        typer.echo(f"and {len(found) - limit:,} more: --limit {len(found)}, or --json")
