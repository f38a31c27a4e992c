"""The arithmetic of the loss of given numbers, each figure reached in several ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.loss_table import Explanation, Row
from mnist_ce.explain.parsing import check_logits, check_probabilities
from mnist_ce.explain.reference_losses import Array, check_targets, one_hot

__all__ = ["explain_binary", "explain_logits", "explain_probabilities"]

SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)  # below it, float64 loses digits


def explain_logits(
    logits: Sequence[Sequence[float]] | NDArray[np.floating],
    targets: Sequence[int],
    *,
    reduction: str = "mean",
    class_names: Sequence[str] | None = None,
) -> Explanation:
    """Explain softmax and cross-entropy of rows of logits.

    Args:
        logits: [rows, classes]; -inf is an impossible class.
        targets: [rows], class indices.
        reduction: `mean`, `sum` or `none`.
        class_names: What to call the classes; None: their numbers.

    Raises:
        UsageError: If a number, target or the reduction is not valid.
    """
    values = check_logits(logits)
    indices = check_targets(targets, *values.shape)
    rows = np.arange(len(values))
    probabilities = formulas.softmax(values)
    exact = formulas.cross_entropy(values, indices)
    chosen = probabilities[rows, indices]
    lost = (chosen < SMALLEST_NORMAL) & np.isfinite(exact)
    with np.errstate(divide="ignore"):
        by_probability = np.where(lost, exact, 0.0 - np.log(chosen))
        naive = 0.0 - np.log(formulas.naive_softmax(values)[rows, indices])
    in_two, in_one = formulas.torch_cross_entropy(values, indices)
    ways = {
        "negative_log_softmax": by_probability,
        "log_sum_exp": exact,
        "log_softmax_nll_loss": in_two,
        "cross_entropy_loss": in_one,
    }
    notes = []
    wrong = ~np.isclose(naive, exact, rtol=1e-7, atol=1e-9)
    if wrong.any():
        notes.append(
            f"Written plainly, -log(exp z_y / sum exp z) gives {naive[wrong][0]} here, as exp "
            "overflows or is rounded to 0. The stable form is used: exp(z - max z) instead of "
            "exp z, which leaves the ratio as it is."
        )
    if lost.any():
        notes.append(
            "The target's softmax is rounded to 0, so the first way is taken in logarithms."
        )
    if np.isinf(exact).any():
        notes.append("The target's logit is -inf: what happened was impossible, the loss is inf.")
    if values.shape[1] == 1:
        notes.append("With one class the answer is certain: softmax is 1 and the loss 0, always.")
    return Explanation(
        kind="logits",
        class_names=_names(class_names, values.shape[1]),
        rows=_rows(
            indices,
            values,
            probabilities,
            ways,
            naive,
            formulas.cross_entropy(probabilities, indices),
        ),
        reduction=reduction,
        floor_twice=_floor_twice(values.shape[1]),
        notes=tuple(notes),
    )


def explain_probabilities(
    probabilities: Sequence[Sequence[float]] | NDArray[np.floating],
    targets: Sequence[int],
    *,
    reduction: str = "mean",
) -> Explanation:
    """Explain cross-entropy of rows of probabilities, in the one-hot form.

    Args:
        probabilities: [rows, classes]; rows that sum to 1.
        targets: [rows], class indices.
        reduction: `mean`, `sum` or `none`.

    Raises:
        UsageError: If a number, target or the reduction is not valid.
    """
    import torch

    values = check_probabilities(probabilities)
    indices = check_targets(targets, *values.shape)
    with np.errstate(divide="ignore"):
        logarithms = np.log(values)
    by_index = 0.0 - logarithms[np.arange(len(values)), indices]
    by_torch = torch.nn.NLLLoss(reduction="none")(
        torch.tensor(logarithms), torch.tensor(indices)
    ).numpy()
    ways = {
        "one_hot": formulas.cross_entropy_of_probabilities(
            values, one_hot(indices, values.shape[1])
        ),
        "nll_loss": by_torch,
        "negative_log": by_index,
    }
    notes = []
    if np.isinf(by_index).any():
        notes.append("The target's probability is 0: the loss is inf.")
    if (np.abs(values.sum(axis=1) - 1) > 1e-9).any():
        notes.append("The numbers sum to 1 only nearly, as rounded ones do; used as they are.")
    return Explanation(
        kind="probabilities",
        class_names=_names(None, values.shape[1]),
        rows=_rows(indices, None, values, ways, by_index, formulas.cross_entropy(values, indices)),
        reduction=reduction,
        floor_twice=_floor_twice(values.shape[1]),
        notes=tuple(notes),
    )


def explain_binary(
    logits: Sequence[float] | NDArray[np.floating],
    targets: Sequence[int],
    *,
    reduction: str = "mean",
    class_names: Sequence[str] = ("no", "yes"),
) -> Explanation:
    """Explain sigmoid and binary cross-entropy of one logit per example.

    Args:
        logits: [rows], finite.
        targets: [rows], 1 for yes and 0 for no.
        reduction: `mean`, `sum` or `none`.
        class_names: What no and yes stand for.

    Raises:
        UsageError: If a number, target or the reduction is not valid.
    """
    values = check_logits(np.asarray(logits, dtype=np.float64)[:, None])[:, 0]
    indices = check_targets(targets, len(values), 2)
    yes = formulas.sigmoid(values)
    exact = formulas.binary_cross_entropy_with_logits(values, indices)
    by_probability = formulas.binary_cross_entropy(yes, indices)
    in_two, in_one = formulas.torch_binary_cross_entropy(values, indices)
    ways = {
        "negative_log_sigmoid": by_probability,
        "stable_formula": exact,
        "sigmoid_bce_loss": in_two,
        "bce_with_logits_loss": in_one,
    }
    notes = []
    if not np.allclose(by_probability, exact, rtol=1e-7, atol=1e-9):
        notes.append(
            "The sigmoid is rounded so near to 0 or 1 that the loss cannot be had from it, and "
            "BCELoss cuts it at 100; the formula on the raw logit is used, and right."
        )
    return Explanation(
        kind="binary",
        class_names=tuple(class_names),
        rows=_rows(
            indices,
            values[:, None],
            np.stack([formulas.sigmoid(-values), yes], axis=1),
            ways,
            by_probability,
            formulas.binary_cross_entropy_with_logits(yes, indices),
        ),
        reduction=reduction,
        floor_twice=float(np.log1p(np.exp(-1))),
        notes=tuple(notes),
    )


def _floor_twice(num_classes: int) -> float:
    """Return the cross-entropy of logits 1 for the target and 0 for every other class."""
    return float(np.log1p((num_classes - 1) / np.e))


def _names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    return tuple(class_names or map(str, range(num_classes)))


def _rows(
    targets: NDArray[np.int64],
    logits: Array | None,
    probabilities: Array,
    ways: dict[str, Array],
    naive: Array,
    twice: Array,
) -> tuple[Row, ...]:
    return tuple(
        Row(
            target=int(target),
            logits=None if logits is None else logits[number],
            probabilities=probabilities[number],
            losses={way: float(losses[number]) + 0.0 for way, losses in ways.items()},  # no -0.0
            naive_loss=float(naive[number]),
            twice=float(twice[number]),
        )
        for number, target in enumerate(targets)
    )
