"""`mnist-ce explain`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.explain_table import number_text, print_loss_table
from mnist_ce.cli.printing import note, print_json
from mnist_ce.system.errors import MnistCeError, UsageError

if TYPE_CHECKING:
    from mnist_ce.explain.image import ImageExplanation
    from mnist_ce.explain.loss_table import LossTable

WHAT_IS_PLOTTED = "-ln p of the right class; p of each class; the gradient by each logit, p - y"


def explain(
    image: Annotated[
        str | None, Argument(metavar="IMAGE", help="An image of a digit.", show_default=False)
    ] = None,
    logits: Annotated[
        str | None, Option(help="Rows of logits: 2.0,1.0,0.1; 0.5,2,0.3", metavar="NUMBERS")
    ] = None,
    probabilities: Annotated[
        str | None, Option(help="Rows of probabilities: 0.7,0.2,0.1", metavar="NUMBERS")
    ] = None,
    target: Annotated[
        str | None,
        Option(
            help="The right class of each row: 0 or 2,0,1. For an image: its class; "
            "default: the prediction.",
            metavar="CLASS",
        ),
    ] = None,
    reduction: Annotated[
        str | None, Option(help="mean, sum or none.", show_default="mean", metavar="NAME")
    ] = None,
    binary: Annotated[
        bool, Option("--binary", help="Logits of a yes/no network, one per row.")
    ] = False,
    checkpoint: options.Checkpoint = None,
    plot: Annotated[
        Path | None,
        Option(help="Plot the loss; for an image each pixel's attribution.", metavar="FILE.png"),
    ] = None,
    precise: Annotated[bool, Option("--precise", help="Eight decimals.")] = False,
    about_logits: Annotated[
        bool, Option("--why-raw-logits", help="Why the network ends without a softmax.")
    ] = False,
    input_mean: options.InputMean = 0.0,
    input_std: options.InputStd = 1.0,
    output: options.Output = "checkpoints",
    json: options.Json = False,
) -> None:
    """Show how the loss is computed, for numbers or an image.

    For example:
      mnist-ce explain --logits 2.0,1.0,0.1 --target 0
      mnist-ce explain --probabilities 0.7,0.2,0.1 --target 0
      mnist-ce explain --binary --logits 1.2 --target 1
      mnist-ce explain seven.png --target 7 --plot why.png
    """
    if [image, logits, probabilities].count(None) != 2:
        raise UsageError("give one of --logits, --probabilities and IMAGE")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: the plot is a PNG; end its name in .png")
    if image is None:
        if target is None:
            raise UsageError("--target is missing: the right class of each row, as in 0 or 2,0,1")
        if checkpoint is not None:
            raise UsageError("--checkpoint goes with IMAGE, not with numbers")
        if binary and logits is None:
            raise UsageError("--binary goes with --logits")
        from mnist_ce.explain.loss_table import loss_table

        kind = "probabilities" if logits is None else "binary" if binary else "logits"
        name = "--probabilities" if logits is None else "--logits"
        rows = _parse_rows(logits or probabilities or "", name)
        table = loss_table(kind, rows, _parse_targets(target), reduction=reduction or "mean")
        if plot is not None:
            _plot_loss(table, plot)
        if json:
            print_json(table.to_dict())
        else:
            print_loss_table(table, table.notes, precise=precise, about_logits=about_logits)
        return
    if reduction is not None:
        raise UsageError("--reduction goes with numbers: an image is one row")
    if binary:
        raise UsageError("--binary goes with --logits; for an image the checkpoint determines it")
    from mnist_ce.explain.image import explain_image

    explained = explain_image(
        image,
        target,
        checkpoint=checkpoint,
        output=output,
        input_mean=input_mean,
        input_std=input_std,
    )
    note(f"checkpoint {explained.trained.path}")
    if plot is not None:
        _plot_image(explained, plot)
    if json:
        print_json(explained.to_dict())
    else:
        _print_image(explained, precise=precise, about_logits=about_logits)


def _parse_rows(text: str, name: str) -> list[list[float]]:
    """Read rows of numbers: commas within a row, semicolons between rows."""
    rows = text.strip().removesuffix(";").split(";")
    return [[_parse_number(part, name) for part in row.split(",")] for row in rows]


def _parse_number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        rows = "write rows as in 2.0,1.0,0.1; 0.5,2,0.3"
        raise UsageError(f"{name}: '{text.strip()}' is not a number; {rows}") from None


def _parse_targets(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        advice = "give one class number per row, as in 0 or 2,0,1"
        raise UsageError(f"--target '{text}': {advice}") from None


def _print_image(explained: ImageExplanation, *, precise: bool, about_logits: bool) -> None:
    from mnist_ce.cli.ascii_art import image_lines

    has_colours = "NO_COLOR" not in os.environ and os.environ.get("TERM") not in (None, "dumb")
    colour, encoding = sys.stdout.isatty() and has_colours, sys.stdout.encoding or "ascii"
    for line in image_lines(explained.pixels, colour=colour, encoding=encoding):
        sys.stdout.write(f"{line}\n")
    notes = [*explained.notes, *explained.table.notes]
    print_loss_table(explained.table, notes, precise=precise, about_logits=about_logits)
    loss = number_text(explained.training_loss, 8 if precise else 4)
    typer.echo(f"\nthe loss as training computes it, in float32: {loss}")


def _plot_loss(table: LossTable, path: Path) -> None:
    from mnist_ce.report.plots.canvas import Heading
    from mnist_ce.report.plots.loss import draw_loss

    if len(table.targets) > 1:
        raise UsageError("--plot goes with one row of numbers")
    loss, target = float(table.training_losses[0]), int(table.targets[0])
    heading = Heading(f"The loss of class {table.class_names[target]}: {loss:.4f}", WHAT_IS_PLOTTED)
    _write(path, draw_loss(heading, table.class_names, table.probabilities[0], target))


def _plot_image(explained: ImageExplanation, path: Path) -> None:
    from mnist_ce.report.plots.canvas import Heading
    from mnist_ce.report.plots.grids import draw_attributions

    names, prediction = explained.trained.class_names, explained.prediction
    heading = Heading(
        f"Attribution of the prediction {names[prediction]}",
        f"{explained.path}, network {explained.trained.label}; "
        f"probability {explained.table.probabilities[0, prediction]:.4f}",
    )
    panels = {
        f"for {names[label]} ({'prediction' if label == prediction else 'target'})": values
        for label, values in explained.attributions.items()
    }
    _write(path, draw_attributions(heading, explained.pixels, panels))


def _write(path: Path, png: bytes) -> None:
    from mnist_ce.system.files import write_atomically
    from mnist_ce.system.text import one_line

    try:
        write_atomically(path, png)
    except OSError as error:
        raise MnistCeError(f"--plot {path} cannot be written: {one_line(error)}") from None
    note(f"drawn in {path}")
