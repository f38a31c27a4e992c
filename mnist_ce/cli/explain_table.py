"""Printed tables of a loss, in ASCII, 80 columns wide."""

from __future__ import annotations

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


def print_loss_table(table: LossTable, notes: list[str]) -> None:
    """Print each row's classes, the loss by each method, the notes, and why logits stay raw."""
    names, num_rows = table.class_names, len(table.targets)
    for row, target in enumerate(table.targets):
        which = f"row {row}: " if num_rows > 1 else ""
        typer.echo(
            f"{which}target {names[target]}, prediction {names[table.predictions[row]]}, "
            f"loss {number_text(table.training_losses[row])}"
        )
        typer.echo("\n".join(_class_lines(table, row)) + "\n")
    agreement = "which agree" if table.agree else "which DIFFER here: see the note"
    reduction = "each" if table.reduction == "none" else table.reduction
    rows = f" ({reduction} of {num_rows} rows)" if num_rows > 1 else ""
    typer.echo(f"the loss by {COUNTS[len(table.losses)]} methods, {agreement}{rows}")
    for method, loss in table.losses.items():
        _echo_values(f"  {METHODS[method]}  ", loss)
    for text in notes:
        typer.echo("\n" + textwrap.fill(f"note: {text}", WIDTH))
    is_binary = table.kind == "binary"
    applied, ends = ("sigmoid", "a raw logit") if is_binary else ("softmax", "raw logits")
    reason = textwrap.fill(table.rationale, WIDTH, initial_indent="  ", subsequent_indent="  ")
    typer.echo(f"\nwhy the network ends in {ends}\n{reason}")
    _echo_values(f"  {'loss of the raw logits':<38}", loss)  # the last method is training's
    _echo_values(f"  {f'with {applied} applied twice':<38}", table.double_softmax_loss)
    bound = number_text(table.double_softmax_lower_bound)
    typer.echo(f"  {'which is at least':<38}{bound}, whatever the logits")


def _class_lines(table: LossTable, row: int) -> list[str]:
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
    columns["-log p"] = table.negative_logs[row].tolist()
    lines = [f"{'class':<{width}}" + "".join(f"{name:>14}" for name in columns)]
    for label, name in enumerate(names):
        cells = "".join(f"{number_text(values[label]):>14}" for values in columns.values())
        mark = "  <- target" if label == table.targets[row] else ""
        lines.append(f"{name:<{width}}{cells}{mark}")
    return lines


def number_text(value: float) -> str:
    """Return a number in at most 12 characters, with eight decimals where they fit."""
    return f"{value:.8f}" if value == 0 or 1e-4 <= abs(value) < 1000 else f"{value:.6g}"


def _echo_values(label: str, values: Array) -> None:
    text = "  ".join(map(number_text, values.reshape(-1).tolist()))
    indent = " " * len(label)
    typer.echo(textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=indent))
