"""`mnist-ce compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mnist_ce.cli import options
from mnist_ce.cli.printing import print_json
from mnist_ce.system.errors import sanitize, truncate_middle

if TYPE_CHECKING:
    from mnist_ce.evaluation.comparison import Comparison

WHICH = "A run's name or folder, a state_dict file, or 'pretrained'."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=WHICH, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    dataset: Annotated[
        str | None,
        typer.Option(help="Another dataset.", show_default="the runs' own"),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Images to list; --json lists all.", metavar="N")
    ] = 20,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Compare two networks on the same images, and test whether the difference is significant.

    Examples:

      mnist-ce compare my-run pretrained

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
    a, outcomes = comparison.a, comparison.outcomes
    typer.echo(f"{a.dataset}, {a.split} split, {comparison.num_images:,} images")
    for letter, report in (("A", a), ("B", comparison.b)):
        low, high = report.accuracy_interval
        result = report.result
        typer.echo(f"{letter}  {truncate_middle(sanitize(report.trained.label), 77)}")
        typer.echo(
            f"   {result.num_correct}/{result.num_examples} ({result.accuracy:.2%}), "
            f"95 % interval {low:.2%} to {high:.2%}"
        )
    typer.echo(
        f"both right {outcomes['both_right']:,}, only A {outcomes['only_a_right']:,}, "
        f"only B {outcomes['only_b_right']:,}, both wrong {outcomes['both_wrong']:,}"
    )
    typer.echo(comparison.verdict)
    _print_differences(comparison, limit)


def _print_differences(comparison: Comparison, limit: int) -> None:
    names = comparison.a.class_names
    found = comparison.differences
    if not found or not limit:
        return
    width = max(len(name) for name in (*names, "truth"))
    typer.echo(f"\nimages with different predictions ({len(found):,})")
    typer.echo(f"{'index':>6}  {'truth':<{width}}  {'A':<{width}}  B")
    for item in found[:limit]:
        truth, a, b = (names[n] for n in (item.label, item.a, item.b))
        typer.echo(f"{item.index:6d}  {truth:<{width}}  {a:<{width}}  {b}")
    if len(found) > limit:
        typer.echo(f"and {len(found) - limit:,} more: --limit {len(found)}, or --json")
