"""`mnist-ce explain`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.explain_table import image_lines, number_text, print_loss
from mnist_ce.cli.printing import note, print_json, write_plot
from mnist_ce.system.errors import UsageError

if TYPE_CHECKING:
    from mnist_ce.explain.image import ImageExplanation

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
        Path | None, options.plot("Plot the loss; for an image each pixel's attribution.")
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
    numbers = logits if logits is not None else probabilities or ""
    wrong = {
        "give one of --logits, --probabilities and IMAGE": (
            [image, logits, probabilities].count(None) != 2
        ),
        "--target is missing: the right class of each row, as in 0 or 2,0,1": (
            image is None and target is None
        ),
        "--checkpoint goes with IMAGE, not with numbers": image is None and checkpoint is not None,
        "--binary goes with --logits": image is None and logits is None and binary,
        "--plot goes with one row of numbers": plot is not None and ";" in numbers.rstrip("; "),
        "--reduction goes with numbers: an image is one row": image and reduction is not None,
        "--binary goes with --logits; for an image the checkpoint determines it": image and binary,
    }
    if message := next((text for text, is_so in wrong.items() if is_so), None):
        raise UsageError(message)
    if image is None:
        from mnist_ce.explain.loss import explain_loss, to_json

        kind = "probabilities" if logits is None else "binary" if binary else "logits"
        rows = _parse_rows(numbers, "--probabilities" if logits is None else "--logits")
        loss = explain_loss(kind, rows, _parse_targets(target or ""), reduction=reduction or "mean")
        if plot is not None:
            _plot_loss(loss, plot)
        if json:
            print_json(to_json(loss))
        else:
            print_loss(loss, precise=precise, about_logits=about_logits)
        return
    from mnist_ce.explain.image import explain_image

    network: dict[str, Any] = {"checkpoint": checkpoint, "output": output}
    network |= {"input_mean": input_mean, "input_std": input_std}
    explanation = explain_image(image, target, **network)
    note(f"checkpoint {explanation.trained.path}")
    if plot is not None:
        _plot_image(explanation, plot)
    if json:
        print_json(explanation.to_dict())
    else:
        _print_image(explanation, precise=precise, about_logits=about_logits)


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


def _print_image(explanation: ImageExplanation, *, precise: bool, about_logits: bool) -> None:
    has_colours = "NO_COLOR" not in os.environ and os.environ.get("TERM") not in (None, "dumb")
    colour, encoding = sys.stdout.isatty() and has_colours, sys.stdout.encoding or "ascii"
    for line in image_lines(explanation.pixels, colour=colour, encoding=encoding):
        sys.stdout.write(f"{line}\n")
    print_loss(explanation.loss, precise=precise, about_logits=about_logits)
    loss = number_text(explanation.training_loss, 8 if precise else 4)
    typer.echo(f"\nthe loss as training computes it, in float32: {loss}")


def _plot_loss(loss: Mapping[str, Any], path: Path) -> None:
    import numpy as np

    from mnist_ce.report.plots.canvas import Heading
    from mnist_ce.report.plots.explanation import draw_loss

    (row,), names = loss["rows"], loss["class_names"]
    title = f"The loss of class {names[row['target']]}: {row['loss']:.4f}"
    heading = Heading(title, WHAT_IS_PLOTTED)
    write_plot(path, draw_loss(heading, names, np.array(row["probabilities"]), row["target"]))


def _plot_image(explanation: ImageExplanation, path: Path) -> None:
    from mnist_ce.report.plots.canvas import Heading
    from mnist_ce.report.plots.explanation import draw_attributions

    names, prediction = explanation.trained.class_names, explanation.prediction
    heading = Heading(
        f"Attribution of the prediction {names[prediction]}",
        f"{explanation.path}, network {explanation.trained.label}; "
        f"probability {explanation.loss['rows'][0]['probabilities'][prediction]:.4f}",
    )
    panels = {
        f"for {names[label]} ({'prediction' if label == prediction else 'target'})": values
        for label, values in explanation.attributions.items()
    }
    write_plot(path, draw_attributions(heading, explanation.pixels, panels))
