"""`mnist-ce explain`: the loss as a table of ASCII characters, 80 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json, print_table, show, write_plot
from mnist_ce.system.errors import UsageError
from mnist_ce.system.text import truncate_middle

if TYPE_CHECKING:
    from mnist_ce.explain.image import ImageExplanation

COUNTS = {3: "three", 4: "four"}
WIDTH = 78
EXP_LIMIT = 700.0  # exp of more than 709.78 is infinite in float64, of less than -745.1 zero
IMAGE_HELP = "An image of a digit, or mnist:test[0]."
WHY = "why: the loss is -ln p of the right class, however the other classes share the rest."
WHY_GRADIENT = (
    " Its gradient by the logits is p - y. Gradient descent subtracts that, times the learning "
    "rate, so that the right class's logit rises and the others fall."
)
SHADES = " .:-=+*#%@"  # from black to white


def explain(
    network: dict[str, Any],
    image: Annotated[str | None, Argument(help=IMAGE_HELP, show_default=False)] = None,
    logits: Annotated[str | None, Option(help="Rows of logits: '2.0,1.0,0.1; 0.5,2,0.3'")] = None,
    probabilities: Annotated[str | None, Option(help="Rows of probabilities: 0.7,0.2,0.1")] = None,
    target: Annotated[str | None, Option(help="The right class, of each row: 2,0,1.")] = None,
    reduction: Annotated[str | None, Option(help="mean, sum or none.", show_default="mean")] = None,
    binary: Annotated[bool, Option("--binary", help="Logits of a yes/no network.")] = False,
    checkpoint: options.Checkpoint = None,
    plot: options.Plot = None,
    precise: Annotated[bool, Option("--precise", help="Eight decimals.")] = False,
    about_logits: Annotated[
        bool, Option("--why-raw-logits", help="Why the network ends without a softmax.")
    ] = False,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    json: options.Json = False,
) -> None:
    """Show how the loss is computed, for numbers or an image.

    For example:
      mnist-ce explain --logits 2.0,1.0,0.1 --target 0
      mnist-ce explain --probabilities 0.7,0.2,0.1 --target 0
      mnist-ce explain --binary --logits 1.2 --target 1
      mnist-ce explain examples/seven.jpg --target 7 --plot why.png
    """
    numbers = logits or probabilities or ""
    wrong = {
        "give one of --logits, --probabilities and IMAGE": (
            [image, logits, probabilities].count(None) != 2
        ),
        "--target is missing: the right class of each row, as in 0 or 2,0,1": not (image or target),
        "--checkpoint goes with IMAGE, not with numbers": checkpoint and not image,
        "--plot goes with one row of numbers": plot and ";" in numbers.rstrip("; "),
        "--reduction goes with numbers: an image is one row": image and reduction,
        "--binary goes with --logits; for an image the checkpoint determines it": (
            binary and not logits
        ),
    }
    if message := next(filter(wrong.get, wrong), None):
        raise UsageError(message)
    if image is None:
        from mnist_ce.explain.loss import explain_loss, to_json

        kind = "probabilities" if logits is None else "binary" if binary else "logits"
        rows = _parse_rows(numbers, "--probabilities" if logits is None else "--logits")
        try:
            targets = [int(part) for part in (target or "").split(",")]
        except ValueError:
            advice = "give one class number per row, as in 0 or 2,0,1"
            raise UsageError(f"--target '{target}': {advice}") from None
        loss = explain_loss(kind, rows, targets, reduction=reduction or "mean")
        if plot is not None:
            from mnist_ce.report.plots.evaluation import draw_loss

            write_plot(plot, draw_loss(loss["class_names"], loss["rows"][0]))
        show(json, lambda: to_json(loss), lambda: _print_loss(loss, precise, about_logits))
        return
    from mnist_ce.explain.image import explain_image

    explanation = explain_image(
        image, target, checkpoint=checkpoint, output=output, data_dir=data_dir, **network
    )
    note(f"checkpoint {explanation.trained.path}")
    if plot is not None:
        _plot_image(explanation, plot)
    if json:
        print_json(explanation.to_dict())
        return
    rows = explanation.pixels.reshape(14, 2, 28).max(axis=1)  # a character is as high as two pixels
    echo("\n".join("".join(SHADES[level * 10 // 256] for level in row) for row in rows.tolist()))
    _print_loss(explanation.loss, precise, about_logits)
    training_loss = _number_text(explanation.training_loss, 8 if precise else 4)
    echo(f"\nthe loss as training computes it, in float32: {training_loss}")


def _parse_rows(text: str, name: str) -> list[list[float]]:
    """Read rows of numbers: commas within a row, semicolons between rows."""
    rows = text.strip().removesuffix(";").split(";")
    try:
        return [[float(number) for number in row.split(",")] for row in rows]
    except ValueError as error:
        number = str(error).rpartition(": ")[2]
        advice = "write rows as in 2.0,1.0,0.1; 0.5,2,0.3"
        raise UsageError(f"{name}: {number} is not a number; {advice}") from None


def _plot_image(explanation: ImageExplanation, path: Path) -> None:
    from mnist_ce.report.plots.images import draw_attributions

    names, prediction = explanation.trained.class_names, explanation.prediction
    title = f"Attribution of the prediction {names[prediction]}"
    subtitle = (
        f"{explanation.path}, network {explanation.trained.label}; "
        f"probability {explanation.loss['rows'][0]['probabilities'][prediction]:.4f}"
    )
    panels = {
        f"for {names[label]} ({'prediction' if label == prediction else 'target'})": values
        for label, values in explanation.attributions.items()
    }
    write_plot(path, draw_attributions(title, subtitle, explanation.pixels, panels))


def _print_loss(loss: Mapping[str, Any], precise: bool, about_logits: bool) -> None:
    decimals, rows, value = 8 if precise else 4, loss["rows"], loss["loss"]
    for number, row in enumerate(rows):
        _print_row(loss, row, f"row {number}: " if len(rows) > 1 else "", decimals)
    if len(rows) > 1 and loss["reduction"] != "none":
        mean = "" if loss["reduction"] == "sum" else f", as of a probability of {_percent(value)}"
        echo(f"{loss['reduction']} of {len(rows)} rows: {_number_text(value, decimals)}{mean}\n")
    echo(textwrap.fill(WHY + ("" if rows[0]["gradient"] is None else WHY_GRADIENT), WIDTH))
    agreement = "which agree" if loss["agree"] else "which DIFFER here: see the note"
    echo(f"\nthe loss by {COUNTS[len(loss['losses'])]} methods, {agreement}")
    for name, (library, formula, _) in loss["methods"].items():
        _echo_values(f"  {formula:<33} {library}  ", loss["losses"][name], decimals)
    for text in loss["notes"]:
        echo("\n" + textwrap.fill(f"note: {text}", WIDTH))
    if about_logits:
        applied = "sigmoid" if loss["kind"] == "binary" else "softmax"
        echo("\n" + textwrap.fill(loss["why_raw_logits"], WIDTH))
        _echo_values("  loss of the raw logits           ", value, decimals)
        twice = loss["loss_applied_twice"]
        _echo_values(f"  with {applied} applied twice       ", twice, decimals)
        bound = _number_text(loss["least_loss_applied_twice"], decimals)
        echo(f"  which is at least                {bound}, whatever the logits")


def _print_row(loss: Mapping[str, Any], row: Mapping[str, Any], which: str, decimals: int) -> None:
    names, target, prediction = loss["class_names"], row["target"], row["prediction"]
    question = "yes or no" if loss["kind"] == "binary" else f"which of {len(names)} classes"
    verdict = "right" if prediction == target else "wrong"
    confidence = _percent(row["negative_log_probabilities"][prediction])
    chance = _number_text(math.log(len(names)), decimals)
    echo(
        f"{which}{question}? target {names[target]}, prediction {names[prediction]} "
        f"({confidence}), {verdict}\n"
        f"loss {_number_text(row['loss'], decimals)}: the target has a probability of "
        f"{_percent(row['loss'])}\n"
        f"for comparison, guessing: ln {len(names)} = {chance}\n"
    )
    columns: dict[str, Sequence[float]] = {}
    if row["logits"] is not None:
        logits = [0.0, *row["logits"]] if loss["kind"] == "binary" else row["logits"]
        # exp(z), as the formula has it, where float64 can represent it.
        shift = 0.0 if -EXP_LIMIT < max(logits) < EXP_LIMIT else max(logits)
        powers = [math.exp(logit - shift) for logit in logits]
        columns = {"logit": logits, "exp(z-max)" if shift else "exp(z)": powers}
    columns["softmax" if loss["kind"] == "logits" else "p"] = row["probabilities"]
    columns["-ln p"] = row["negative_log_probabilities"]
    if row["gradient"] is not None:
        columns["p - y"] = row["gradient"]
    table = [["class", *columns, ""]]
    for label, name in enumerate(names):
        texts = [_number_text(values[label], decimals) for values in columns.values()]
        mark = "<- target" if label == target else ""
        table.append([truncate_middle(name, 14), *texts, mark])
    print_table(table, "<" + ">" * len(columns) + "<")
    echo()


def _number_text(value: float, decimals: int) -> str:
    """Return a number in at most `decimals` + 4 characters."""
    is_plain = value == 0 or 1e-4 <= abs(value) < 1000
    return f"{value:.{decimals}f}" if is_plain else f"{value:.{max(decimals - 2, 3)}g}"


def _percent(loss: float) -> str:
    probability = math.exp(-loss)
    if probability >= 0.99995 and loss > 0:
        return "> 99.99 %"
    return f"{100 * probability:.4g} %" if probability >= 1e-6 else f"{probability:.3g}"


def _echo_values(label: str, values: float | list[float], decimals: int) -> None:
    numbers = values if isinstance(values, list) else [values]
    text = "  ".join(_number_text(value, decimals) for value in numbers)
    indent = " " * len(label)
    echo(textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=indent))
