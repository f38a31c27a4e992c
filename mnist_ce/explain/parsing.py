"""Numbers that a user gives: from text to checked arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnist_ce.explain.reference_losses import Array
from mnist_ce.system.errors import UsageError

__all__ = ["check_logits", "check_probabilities", "parse_rows", "parse_targets"]

LARGEST_LOGIT = float(np.finfo(np.float32).max)  # what a network in float32 can give
ROUNDING = 0.5e-4  # of a probability printed with four decimals


def parse_rows(text: str, name: str) -> list[list[float]]:
    """Read rows of numbers: commas within a row, semicolons between rows.

    Args:
        text: `"0.1,1,2.1; 2,1,0.1"`, for example; `-inf` is a number too.
        name: The option that it was given by.

    Raises:
        UsageError: If something else stands where a number should.
    """
    return [
        [_number(part, name) for part in row.split(",")]
        for row in text.strip().removesuffix(";").split(";")
    ]


def parse_targets(text: str) -> list[int]:
    """Read class numbers separated by commas, one per row.

    Raises:
        UsageError: If something else stands where a class number should.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--target '{text}': give one class number per row, as in 0 or 2,0,1"
        ) from None


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"{name}: '{text.strip()}' is not a number; write rows as in 2.0,1.0,0.1; 0.5,2,0.3"
        ) from None


def check_logits(logits: Sequence[Sequence[float]] | NDArray[np.floating]) -> Array:
    """Return logits as float64 [rows, classes].

    Raises:
        UsageError: If they are no table of numbers, one is NaN, +inf or beyond float32, or a row
            has none above -inf.
    """
    values = _table(logits, "logits")
    for number, row in enumerate(values):
        place = _place("logits", number, len(values))
        if np.isnan(row).any():
            raise UsageError(f"{place} hold nan, which is not a number to take a softmax of")
        if (row == np.inf).any():
            raise UsageError(f"{place} hold inf: inf / inf has no value; give a finite number")
        if (np.abs(row[np.isfinite(row)]) > LARGEST_LOGIT).any():
            raise UsageError(f"{place} hold a number beyond {LARGEST_LOGIT:.1e}, float32's largest")
        if np.isneginf(row).all():
            raise UsageError(f"{place} hold nothing above -inf: no class would be possible")
    return values


def check_probabilities(probabilities: Sequence[Sequence[float]] | NDArray[np.floating]) -> Array:
    """Return probabilities as float64 [rows, classes].

    A row may miss 1 by what rounding each of its numbers to four decimals can make.

    Raises:
        UsageError: If they are no table of numbers, one is not in [0, 1], or a row does not sum
            to 1.
    """
    values = _table(probabilities, "probabilities")
    for number, row in enumerate(values):
        place = _place("probabilities", number, len(values))
        if not ((row >= 0) & (row <= 1)).all():
            wrong = row[~((row >= 0) & (row <= 1))][0]
            raise UsageError(f"{place} hold {wrong:g}, not in [0, 1]; for logits use --logits")
        if abs(row.sum() - 1) > ROUNDING * len(row):
            raise UsageError(f"{place} sum to {row.sum():.6g}, not 1; for logits use --logits")
    return values


def _table(rows: Sequence[Sequence[float]] | NDArray[np.floating], what: str) -> Array:
    lengths = {len(row) for row in rows}
    if not lengths or 0 in lengths:
        raise UsageError(f"there are no {what}: give numbers, as in 2.0,1.0,0.1")
    if len(lengths) > 1:
        raise UsageError(f"the rows of {what} differ in length: {min(lengths)} to {max(lengths)}")
    return np.array(rows, dtype=np.float64)


def _place(what: str, number: int, num_rows: int) -> str:
    return f"the {what}" + (f" of row {number}" if num_rows > 1 else "")
