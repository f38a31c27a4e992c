"""Printed tables of a loss, in ASCII, 80 columns wide."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mnist_ce.explain.loss_table import LossTable
    from mnist_ce.explain.reference_losses import Array

METHODS = {
    "negative_log_softmax": "-log softmax(z)[target]           NumPy",
    "log_sum_exp": "-z[target] + log sum exp z        NumPy",
    "log_softmax_nll_loss": "LogSoftmax + NLLLoss              torch",
    "cross_entropy_loss": "CrossEntropyLoss                  torch",
    "one_hot": "-sum onehot * log p               NumPy",
    "nll_loss": "NLLLoss of log p                  torch",
    "negative_log": "-log p[target]                    NumPy",
    "negative_log_sigmoid": "-log p, p from sigmoid(z)         NumPy",
    "stable_formula": "max(z,0) - z*y + log(1+exp(-|z|)) NumPy",
    "sigmoid_bce_loss": "Sigmoid + BCELoss                 torch",
    "bce_with_logits_loss": "BCEWithLogitsLoss                 torch",
}
COUNTS = {3: "three", 4: "four"}
WIDTH = 78
EXP_LIMIT = 700.0  # exp of more than 709.78 is infinite in float64, of less than -745.1 zero
WHY = "why: the loss is -ln p of the right class, however the other classes share the rest."
WHY_GRADIENT = (
    " Its gradient by the logits is p - y. Gradient descent subtracts that, times the learning "
    "rate, so that the right class's logit rises and the others fall."
)


def print_loss_table(
    table: LossTable, notes: list[str], *, precise: bool = False, about_logits: bool = False
) -> None:
    """Print the question, the loss and what it means, then how it is computed, and the notes.

    `precise` is for eight decimals in place of four. `about_logits` adds why logits stay raw.
    """
    decimals, num_rows = 8 if precise else 4, len(table.targets)
    for row in range(num_rows):
        _print_row(table, row, decimals)
    loss = list(table.losses.values())[-1]  # by the method of training, [] or [rows]
    if num_rows > 1 and table.reduction != "none":
        mean = "" if table.reduction == "sum" else f", as of a probability of {_percent(loss)}"
        typer.echo(
            f"{table.reduction} of {num_rows} rows: {number_text(float(loss), decimals)}{mean}\n"
        )
    has_logits = table.class_logits is not None
    typer.echo(textwrap.fill(WHY + (WHY_GRADIENT if has_logits else ""), WIDTH))
    agreement = "which agree" if table.agree else "which DIFFER here: see the note"
    typer.echo(f"\nthe loss by {COUNTS[len(table.losses)]} methods, {agreement}")
    for method, values in table.losses.items():
        _echo_values(f"  {METHODS[method]}  ", values, decimals)
    for text in notes:
        typer.echo("\n" + textwrap.fill(f"note: {text}", WIDTH))
    if about_logits:
        applied = "sigmoid" if table.kind == "binary" else "softmax"
        typer.echo("\n" + textwrap.fill(table.rationale, WIDTH))
        _echo_values("  loss of the raw logits           ", loss, decimals)
        _echo_values(f"  with {applied} applied twice       ", table.double_softmax_loss, decimals)
        bound = number_text(table.double_softmax_lower_bound, decimals)
        typer.echo(f"  which is at least                {bound}, whatever the logits")


def _print_row(table: LossTable, row: int, decimals: int) -> None:
    names, target = table.class_names, int(table.targets[row])
    prediction, loss = int(table.predictions[row]), table.training_losses[row]
    question = "yes or no" if table.kind == "binary" else f"which of {len(names)} classes"
    which = f"row {row}: " if len(table.targets) > 1 else ""
    verdict = "right" if prediction == target else "wrong"
    sure = _percent(table.negative_logs[row, prediction])
    guess = number_text(math.log(len(names)), decimals)
    typer.echo(
        f"{which}{question}? target {names[target]}, prediction {names[prediction]} ({sure}), "
        f"{verdict}\n"
        f"loss {number_text(loss, decimals)}: the target has a probability of {_percent(loss)}\n"
        f"for comparison, guessing: ln {len(names)} = {guess}\n"
    )
    typer.echo("\n".join(_class_lines(table, row, decimals)) + "\n")


def _class_lines(table: LossTable, row: int, decimals: int) -> list[str]:
    import numpy as np

    names = [name if len(name) <= 14 else name[:13] + "~" for name in table.class_names]
    width = max(5, *map(len, names))
    columns: dict[str, list[float]] = {}
    if table.class_logits is not None:
        logits = table.class_logits[row]
        columns["logit"] = logits.tolist()
        # The plain exp(z) where float64 can represent it, as the formula has it.
        shifted = not -EXP_LIMIT < logits.max() < EXP_LIMIT
        powers = np.exp(logits - logits.max() if shifted else logits)
        columns["exp(z-max)" if shifted else "exp(z)"] = powers.tolist()
    columns["softmax" if table.kind == "logits" else "p"] = table.probabilities[row].tolist()
    columns["-ln p"] = table.negative_logs[row].tolist()
    if table.gradients is not None:
        columns["p - y"] = table.gradients[row].tolist()
    cell = 12 if decimals > 4 else 11  # then a name of 14 and five columns fit in 80
    lines = [f"{'class':<{width}}" + "".join(f"{name:>{cell}}" for name in columns)]
    for label, name in enumerate(names):
        texts = (number_text(values[label], decimals) for values in columns.values())
        mark = "  <- target" if label == table.targets[row] else ""
        lines.append(f"{name:<{width}}" + "".join(f"{text:>{cell}}" for text in texts) + mark)
    return lines


def number_text(value: float, decimals: int = 4) -> str:
    """Return a number in at most `decimals` + 4 characters, with so many decimals if they fit."""
    is_plain = value == 0 or 1e-4 <= abs(value) < 1000
    return f"{value:.{decimals}f}" if is_plain else f"{value:.{max(decimals - 2, 3)}g}"


def _percent(loss: float | Array) -> str:
    """Return the probability of which a loss is the -ln."""
    probability = math.exp(-float(loss))
    if probability >= 0.99995 and loss > 0:
        return "> 99.99 %"
    return f"{100 * probability:.4g} %" if probability >= 1e-6 else f"{probability:.3g}"


def _echo_values(label: str, values: Array, decimals: int) -> None:
    text = "  ".join(number_text(value, decimals) for value in values.reshape(-1).tolist())
    indent = " " * len(label)
    typer.echo(textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=indent))
