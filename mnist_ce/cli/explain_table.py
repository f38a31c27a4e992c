"""How the arithmetic of a loss is printed: tables that fit 80 columns, in ASCII."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mnist_ce.explain import Explanation, Row

__all__ = ["number_text", "print_explanation"]

WAYS = {
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


def print_explanation(numbers: Explanation, notes: tuple[str, ...]) -> None:
    """Print the table of each row, the loss in its ways, the notes, and why there is no softmax."""
    for index, row in enumerate(numbers.rows):
        typer.echo(_heading(numbers, row, index))
        for line in _class_table(numbers, row):
            typer.echo(line)
        typer.echo("")
    agreement = "which agree" if numbers.agree else "which DIFFER here: see the note"
    typer.echo(f"the loss in {COUNTS[len(numbers.ways)]} ways, {agreement}{_reduction(numbers)}")
    for way, loss in numbers.losses.items():
        _echo_values(f"  {WAYS[way]}  ", loss.reshape(-1).tolist())
    for text in notes:
        typer.echo("\n" + textwrap.fill(f"note: {text}", WIDTH))
    applied = "sigmoid" if numbers.kind == "binary" else "softmax"
    ends = "a raw logit" if numbers.kind == "binary" else "raw logits"
    typer.echo(f"\nwhy the network ends in {ends}\n{_paragraph(numbers.why)}")
    _echo_values(f"  {'the right loss':<38}", _training_loss(numbers))
    _echo_values(f"  {f'with {applied} applied twice':<38}", numbers.twice.reshape(-1).tolist())
    typer.echo(
        f"  {'which never falls below':<38}{number_text(numbers.least_twice)}, however right"
    )


def _reduction(numbers: Explanation) -> str:
    num_rows = len(numbers.rows)
    if num_rows == 1:
        return ""
    return f" ({'each' if numbers.reduction == 'none' else numbers.reduction} of {num_rows} rows)"


def _training_loss(numbers: Explanation) -> list[float]:
    losses: list[float] = numbers.losses[numbers.ways[-1]].reshape(-1).tolist()
    return losses


def _heading(numbers: Explanation, row: Row, index: int) -> str:
    names = numbers.class_names
    which = f"row {index}: " if len(numbers.rows) > 1 else ""
    return (
        f"{which}target {names[row.target]}, answer {names[row.prediction]}, "
        f"loss {number_text(row.loss).strip()}"
    )


def _class_table(numbers: Explanation, row: Row) -> list[str]:
    import numpy as np

    names = [name if len(name) <= 14 else name[:13] + "~" for name in numbers.class_names]
    width = max(5, *map(len, names))
    columns: dict[str, list[float]] = {}
    if (logits := row.class_logits) is not None:
        columns["logit"] = logits.tolist()
        # As small a change as can be: exp as it is, where float64 can hold it.
        shifted = not -EXP_LIMIT < logits.max() < EXP_LIMIT
        powers = np.exp(logits - logits.max() if shifted else logits)
        columns["exp(z-max)" if shifted else "exp(z)"] = powers.tolist()
    normalised = {"logits": "softmax", "binary": "p", "probabilities": "p"}
    columns[normalised[numbers.kind]] = row.probabilities.tolist()
    columns["-log p"] = row.negative_logs.tolist()
    lines = [f"{'class':<{width}}" + "".join(f"{name:>14}" for name in columns)]
    for label, name in enumerate(names):
        cells = "".join(f"{number_text(values[label]):>14}" for values in columns.values())
        mark = "  <- target" if label == row.target else ""
        lines.append(f"{name:<{width}}{cells}{mark}")
    return lines


def number_text(value: float) -> str:
    """Return a number in at most 12 characters, with eight decimals where they fit."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.8f}"
    return f"{value:.6g}"


def _echo_values(label: str, values: list[float]) -> None:
    text = "  ".join(map(number_text, values))
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), drop_whitespace=True
    )
    typer.echo("\n".join(lines))


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
