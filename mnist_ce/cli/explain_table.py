"""Printed explanations in ASCII, 80 columns wide: the loss as a table, and an image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNTS = {3: "three", 4: "four"}
WIDTH = 78
EXP_LIMIT = 700.0  # exp of more than 709.78 is infinite in float64, of less than -745.1 zero
WHY = "why: the loss is -ln p of the right class, however the other classes share the rest."
WHY_GRADIENT = (
    " Its gradient by the logits is p - y. Gradient descent subtracts that, times the learning "
    "rate, so that the right class's logit rises and the others fall."
)

# Each character with the intensity of the upper and the lower half of its cell.
BLOCKS = {character: (level / 4, level / 4) for level, character in enumerate(" ░▒▓█")}
BLOCKS |= {"▀": (1.0, 0.0), "▄": (0.0, 1.0)}
ASCII = {character: (level / 9, level / 9) for level, character in enumerate(" .:-=+*#%@")}
DARKEST_GREY = 232  # the first of the 24 greys at the end of xterm's 256 colours


def print_loss(
    loss: Mapping[str, Any], *, precise: bool = False, about_logits: bool = False
) -> None:
    """Print what `explain_loss` returns: question, loss and meaning, the methods, and the notes.

    `precise` is for eight decimals in place of four. `about_logits` adds why logits stay raw.
    """
    decimals, rows, value = 8 if precise else 4, loss["rows"], loss["loss"]
    for number, row in enumerate(rows):
        _print_row(loss, row, f"row {number}: " if len(rows) > 1 else "", decimals)
    if len(rows) > 1 and loss["reduction"] != "none":
        mean = "" if loss["reduction"] == "sum" else f", as of a probability of {_percent(value)}"
        text = f"{loss['reduction']} of {len(rows)} rows: {number_text(value, decimals)}{mean}\n"
        typer.echo(text)
    has_gradient = rows[0]["gradient"] is not None
    typer.echo(textwrap.fill(WHY + (WHY_GRADIENT if has_gradient else ""), WIDTH))
    agreement = "which agree" if loss["agree"] else "which DIFFER here: see the note"
    typer.echo(f"\nthe loss by {COUNTS[len(loss['losses'])]} methods, {agreement}")
    for name, (library, formula, _) in loss["methods"].items():
        _echo_values(f"  {formula:<33} {library}  ", loss["losses"][name], decimals)
    for text in loss["notes"]:
        typer.echo("\n" + textwrap.fill(f"note: {text}", WIDTH))
    if about_logits:
        applied = "sigmoid" if loss["kind"] == "binary" else "softmax"
        typer.echo("\n" + textwrap.fill(loss["why_raw_logits"], WIDTH))
        _echo_values("  loss of the raw logits           ", value, decimals)
        twice = loss["loss_applied_twice"]
        _echo_values(f"  with {applied} applied twice       ", twice, decimals)
        bound = number_text(loss["least_loss_applied_twice"], decimals)
        typer.echo(f"  which is at least                {bound}, whatever the logits")


def _print_row(loss: Mapping[str, Any], row: Mapping[str, Any], which: str, decimals: int) -> None:
    names, target, prediction = loss["class_names"], row["target"], row["prediction"]
    question = "yes or no" if loss["kind"] == "binary" else f"which of {len(names)} classes"
    verdict = "right" if prediction == target else "wrong"
    confidence = _percent(row["negative_log_probabilities"][prediction])
    chance = number_text(math.log(len(names)), decimals)
    typer.echo(
        f"{which}{question}? target {names[target]}, prediction {names[prediction]} "
        f"({confidence}), {verdict}\n"
        f"loss {number_text(row['loss'], decimals)}: the target has a probability of "
        f"{_percent(row['loss'])}\n"
        f"for comparison, guessing: ln {len(names)} = {chance}\n"
    )
    typer.echo("\n".join(_class_lines(loss, row, decimals)) + "\n")


def _class_lines(loss: Mapping[str, Any], row: Mapping[str, Any], decimals: int) -> list[str]:
    names = [name if len(name) <= 14 else name[:13] + "~" for name in loss["class_names"]]
    width = max(5, *map(len, names))
    columns: dict[str, Sequence[float]] = {}
    if row["logits"] is not None:
        logits = [0.0, *row["logits"]] if loss["kind"] == "binary" else row["logits"]
        columns["logit"] = logits
        # exp(z), as the formula has it, where float64 can represent it.
        shift = 0.0 if -EXP_LIMIT < max(logits) < EXP_LIMIT else max(logits)
        powers = [math.exp(logit - shift) for logit in logits]
        columns["exp(z-max)" if shift else "exp(z)"] = powers
    columns["softmax" if loss["kind"] == "logits" else "p"] = row["probabilities"]
    columns["-ln p"] = row["negative_log_probabilities"]
    if row["gradient"] is not None:
        columns["p - y"] = row["gradient"]
    cell = 12 if decimals > 4 else 11  # then a name of 14 and five columns fit in 80
    lines = [f"{'class':<{width}}" + "".join(f"{name:>{cell}}" for name in columns)]
    for label, name in enumerate(names):
        texts = (number_text(values[label], decimals) for values in columns.values())
        mark = "  <- target" if label == row["target"] else ""
        lines.append(f"{name:<{width}}" + "".join(f"{text:>{cell}}" for text in texts) + mark)
    return lines


def number_text(value: float, decimals: int = 4) -> str:
    """Return a number in at most `decimals` + 4 characters, with so many decimals if they fit."""
    is_plain = value == 0 or 1e-4 <= abs(value) < 1000
    return f"{value:.{decimals}f}" if is_plain else f"{value:.{max(decimals - 2, 3)}g}"


def _percent(loss: float) -> str:
    """Return the probability of which a loss is the -ln."""
    probability = math.exp(-loss)
    if probability >= 0.99995 and loss > 0:
        return "> 99.99 %"
    return f"{100 * probability:.4g} %" if probability >= 1e-6 else f"{probability:.3g}"


def _echo_values(label: str, values: float | list[float], decimals: int) -> None:
    numbers = values if isinstance(values, list) else [values]
    text = "  ".join(number_text(value, decimals) for value in numbers)
    indent = " " * len(label)
    typer.echo(textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=indent))


def image_lines(
    pixels: NDArray[np.uint8], *, colour: bool = False, encoding: str = "utf-8"
) -> list[str]:
    """Return an image as text, two rows of pixels to a line.

    `pixels` are uint8 [28, 28], bright strokes on black. `colour` uses xterm's greys, otherwise
    characters differ in density; where the encoding has no block characters, they are ASCII.
    """
    import numpy as np

    pairs = pixels.reshape(14, 2, 28).transpose(0, 2, 1) / 255  # → [14, 28, 2]
    try:
        has_blocks = bool("".join(BLOCKS).encode(encoding))
    except (UnicodeEncodeError, LookupError):
        has_blocks = False
    if colour and has_blocks:
        return ["".join(map(_coloured, line)) + "\x1b[0m" for line in pairs]
    characters = BLOCKS if has_blocks else ASCII
    shades = np.array(list(characters.values()))  # [characters, 2]
    distances = ((pairs[:, :, None, :] - shades) ** 2).sum(axis=-1)  # → [14, 28, characters]
    drawn = np.array(list(characters))
    return ["".join(line) for line in drawn[distances.argmin(axis=-1)]]


def _coloured(pair: NDArray[np.float64]) -> str:
    """Return half a block in the grey of the upper pixel, on that of the lower one."""
    upper, lower = (DARKEST_GREY + round(23 * float(level)) for level in pair)
    return f"\x1b[38;5;{upper};48;5;{lower}m▀"
