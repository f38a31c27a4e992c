"""`mnist-ce explain`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnist_ce.cli import options
from mnist_ce.cli.explain_table import number_text, print_explanation
from mnist_ce.cli.printing import note, print_json
from mnist_ce.system.errors import MnistCeError, UsageError

if TYPE_CHECKING:
    from mnist_ce.explain import Explanation
    from mnist_ce.explain.picture import PictureExplanation


def explain(
    image: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", help="A picture of a digit.", show_default=False),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(help="Rows of logits: 2.0,1.0,0.1; 0.5,2,0.3", metavar="NUMBERS"),
    ] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(help="Rows of probabilities: 0.7,0.2,0.1", metavar="NUMBERS"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The right class of each row: 0 or 2,0,1. For a picture: its class; "
            "default: the answer.",
            metavar="CLASS",
        ),
    ] = None,
    reduction: Annotated[
        str | None,
        typer.Option(help="mean, sum or none.", show_default="mean", metavar="NAME"),
    ] = None,
    binary: Annotated[
        bool, typer.Option("--binary", help="Logits of a yes/no network, one per row.")
    ] = False,
    checkpoint: options.Checkpoint = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw which pixels moved the answer.", metavar="FILE.png"),
    ] = None,
    input_mean: options.InputMean = 0.0,
    input_std: options.InputStd = 1.0,
    output: options.Output = "checkpoints",
    json: options.Json = False,
) -> None:
    """Show what the loss is, for numbers you give or for a picture.

    For example:

      mnist-ce explain --logits 2.0,1.0,0.1 --target 0

      mnist-ce explain --probabilities 0.7,0.2,0.1 --target 0

      mnist-ce explain --binary --logits 1.2 --target 1

      mnist-ce explain seven.png --target 7 --plot why.png
    """
    _check_usage(image, logits, probabilities, target, reduction, binary, checkpoint, plot)
    if image is None:
        numbers = _explain_numbers(logits, probabilities, target or "", reduction, binary)
        if json:
            print_json(numbers.to_dict())
        else:
            print_explanation(numbers, numbers.notes)
        return
    from mnist_ce.explain.picture import explain_picture

    explained = explain_picture(
        image,
        target,
        checkpoint=checkpoint,
        output=output,
        input_mean=input_mean,
        input_std=input_std,
    )
    note(f"checkpoint {explained.trained.path}")
    if plot is not None:
        _plot(explained, plot)
    if json:
        print_json(explained.to_dict())
    else:
        _print_picture(explained)


def _check_usage(
    image: str | None,
    logits: str | None,
    probabilities: str | None,
    target: str | None,
    reduction: str | None,
    binary: bool,
    checkpoint: str | None,
    plot: Path | None,
) -> None:
    if [image, logits, probabilities].count(None) != 2:
        raise UsageError("give one of --logits, --probabilities and IMAGE")
    if image is None:
        if target is None:
            raise UsageError("--target is missing: the right class of each row, as in 0 or 2,0,1")
        for name, value in (("--checkpoint", checkpoint), ("--plot", plot)):
            if value is not None:
                raise UsageError(f"{name} goes with IMAGE, not with numbers")
    elif reduction is not None:
        raise UsageError("--reduction goes with numbers: a picture is one row")
    if binary and logits is None:
        raise UsageError(
            "--binary goes with --logits"
            + ("; for a picture the checkpoint says what it is" if image else "")
        )
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: the picture is a PNG; end its name in .png")


def _explain_numbers(
    logits: str | None,
    probabilities: str | None,
    target: str,
    reduction: str | None,
    binary: bool,
) -> Explanation:
    from mnist_ce.explain import (
        explain_binary,
        explain_logits,
        explain_probabilities,
        parse_rows,
        parse_targets,
    )

    reduction = reduction or "mean"
    if probabilities is not None:
        rows = parse_rows(probabilities, "--probabilities")
        return explain_probabilities(rows, parse_targets(target), reduction=reduction)
    rows = parse_rows(logits or "", "--logits")
    targets = parse_targets(target)
    if not binary:
        return explain_logits(rows, targets, reduction=reduction)
    if any(len(row) != 1 for row in rows):
        raise UsageError("--binary takes one logit per row; write several rows as 1.2; -0.3")
    return explain_binary([row[0] for row in rows], targets, reduction=reduction)


def _print_picture(explained: PictureExplanation) -> None:
    from mnist_ce.cli.ascii_art import image_lines

    colour = (
        sys.stdout.isatty()
        and "NO_COLOR" not in os.environ
        and os.environ.get("TERM") not in (None, "dumb")
    )
    for line in image_lines(
        explained.pixels, colour=colour, encoding=sys.stdout.encoding or "ascii"
    ):
        sys.stdout.write(f"{line}\n")
    print_explanation(explained.numbers, (*explained.notes, *explained.numbers.notes))
    typer.echo(
        f"\nthe loss as training computes it, in float32: {number_text(explained.training_loss)}"
    )


def _plot(explained: PictureExplanation, path: Path) -> None:
    from mnist_ce.report.plots.attribution import draw_attributions
    from mnist_ce.report.plots.canvas import Heading
    from mnist_ce.system.files import one_line, write_atomically

    names = explained.trained.class_names
    probabilities = explained.numbers.rows[0].probabilities
    heading = Heading(
        f"Which pixels moved the answer {names[explained.answer]}",
        f"{explained.path}, read by {explained.trained.label}; "
        f"probability {probabilities[explained.answer]:.4f}",
    )
    titles = {
        f"for {names[label]}"
        + (" (the answer)" if label == explained.answer else " (the target)"): (values)
        for label, values in explained.attributions.items()
    }
    try:
        write_atomically(path, draw_attributions(heading, explained.pixels, titles))
    except OSError as error:
        raise MnistCeError(f"--plot {path} cannot be written: {one_line(error)}") from None
    note(f"drawn in {path}")
