"""Softmax and cross-entropy as formulas: in NumPy, step by step, and as torch names them.

This module is for reading, for `mnist-ce explain` and for tests. Training does not import it: it
uses torch's own losses, and the tests show that they give the same numbers.

A row is one example, and its numbers are one per class: every sum over classes runs over the last
axis. Everything is float64 here, so that a difference between two ways is a difference between
formulas. The NumPy half needs no torch; the torch half imports it when it is called.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnist_ce.system.errors import UsageError

__all__ = [
    "Array",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "check_targets",
    "cross_entropy",
    "cross_entropy_of_probabilities",
    "log_softmax",
    "naive_softmax",
    "one_hot",
    "reduce_losses",
    "sigmoid",
    "softmax",
    "torch_binary_cross_entropy",
    "torch_cross_entropy",
]

Array: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


# NumPy ------------------------------------------------------------------------------------------


def naive_softmax(logits: ArrayLike) -> Array:
    """Return exp(z_i) / Σ_j exp(z_j), exactly as it is written: NaN from logits near 710 on.

    Args:
        logits: float [..., classes].

    Returns:
        float64 [..., classes]; NaN where exp overflows or every term is 0.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        powers = np.exp(np.asarray(logits, dtype=np.float64))
        ratio: Array = powers / powers.sum(axis=-1, keepdims=True)
    return ratio


def softmax(logits: ArrayLike, axis: int = -1) -> Array:
    """Return exp(z_i - m) / Σ_j exp(z_j - m), with m = max_j z_j.

    The shift by m changes nothing in exact arithmetic, since exp(-m) cancels, and in floating
    point no exponent is above 0 then, so nothing overflows (Goodfellow, Bengio and Courville 2016,
    *Deep Learning*, section 4.1).

    A slip to know: over `axis=0` of a batch [batch, classes] each *column* sums to 1, so that
    examples compete with each other within a class. Over the classes it is the last axis.

    Args:
        logits: float [..., classes]; -inf is an impossible class.
        axis: The axis that sums to 1.

    Returns:
        float64, the shape of `logits`.
    """
    values = np.asarray(logits, dtype=np.float64)
    powers: Array = np.exp(values - values.max(axis=axis, keepdims=True))
    ratio: Array = powers / powers.sum(axis=axis, keepdims=True)
    return ratio


def log_softmax(logits: ArrayLike) -> Array:
    """Return log softmax(z)_i = z_i - log Σ_j exp(z_j), which has a value where softmax is 0.

    Computed as (z_i - m) - log Σ_j exp(z_j - m), with m = max_j z_j, as in `softmax`.

    Args:
        logits: float [..., classes].

    Returns:
        float64 [..., classes], at most 0.
    """
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logarithms


def one_hot(targets: ArrayLike, num_classes: int) -> Array:
    """Return rows that are 1 at the target and 0 elsewhere: all its probability on one class.

    Args:
        targets: int [rows], class indices.
        num_classes: The number of classes.

    Returns:
        float64 [rows, num_classes].

    Raises:
        UsageError: If a target is not a class.
    """
    indices = check_targets(targets, np.size(targets), num_classes)
    rows: Array = np.eye(num_classes)[indices]
    return rows


def cross_entropy(logits: ArrayLike, targets: ArrayLike) -> Array:
    """Return the loss of each row from its logits: -z_y + log Σ_j exp(z_j).

    This is -log softmax(z)_y with the logarithm taken by hand, so that no probability, which might
    be rounded to 0, is ever formed. It is what `torch.nn.CrossEntropyLoss` computes.

    Args:
        logits: float [rows, classes], not NaN or +inf.
        targets: int [rows], class indices.

    Returns:
        float64 [rows], in nats, at least 0; +inf where the target's logit is -inf.

    Raises:
        UsageError: If a target is not a class.
    """
    values = np.asarray(logits, dtype=np.float64)
    indices = check_targets(targets, *values.shape)
    losses: Array = (
        0.0 - log_softmax(values)[np.arange(len(values)), indices]
    )  # [rows, classes] → [rows]
    return losses


def cross_entropy_of_probabilities(probabilities: ArrayLike, targets: ArrayLike) -> Array:
    """Return the loss of each row from its probabilities: H(y, p) = -Σ_i y_i log p_i.

    With y one-hot only the target's term is left, -log p_y. A term with y_i = 0 counts 0, whatever
    p_i is: the limit of y log p (Cover and Thomas 2006, section 2.1).

    Args:
        probabilities: float [rows, classes], rows that sum to 1.
        targets: float [rows, classes]: one-hot, or any distribution.

    Returns:
        float64 [rows], in nats; +inf where the target has probability 0.
    """
    weights = np.asarray(targets, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.asarray(probabilities, dtype=np.float64))
    terms = np.multiply(weights, logarithms, where=weights > 0, out=np.zeros_like(logarithms))
    losses: Array = 0.0 - terms.sum(axis=-1)
    return losses


def sigmoid(logits: ArrayLike) -> Array:
    """Return σ(z) = 1 / (1 + exp(-z)), the softmax of (z, 0): the probability of yes.

    Written with exp(-|z|), which cannot overflow.

    Args:
        logits: float [...].

    Returns:
        float64, the shape of `logits`, in [0, 1].
    """
    values = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(values))
    probabilities: Array = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return probabilities


def binary_cross_entropy(probabilities: ArrayLike, targets: ArrayLike) -> Array:
    """Return the loss of each yes/no example from its probability: -y log p - (1-y) log(1-p).

    Args:
        probabilities: float [rows], of yes.
        targets: int [rows], 1 for yes and 0 for no.

    Returns:
        float64 [rows], in nats; +inf where the probability was rounded to 0.
    """
    yes = np.asarray(probabilities, dtype=np.float64)
    both = np.stack([1.0 - yes, yes], axis=-1)  # → [rows, 2]
    return cross_entropy_of_probabilities(both, one_hot(targets, 2))


def binary_cross_entropy_with_logits(logits: ArrayLike, targets: ArrayLike) -> Array:
    """Return the loss of each yes/no example from its logit: max(z, 0) - z y + log(1+exp(-|z|)).

    The formula is the one that the documentation of TensorFlow's
    `sigmoid_cross_entropy_with_logits` derives; `torch.nn.BCEWithLogitsLoss` gives the same.

    Args:
        logits: float [rows], finite.
        targets: int [rows], 1 for yes and 0 for no.

    Returns:
        float64 [rows], in nats, at least 0.
    """
    values = np.asarray(logits, dtype=np.float64)
    positive_part = np.maximum(values, 0.0) - values * np.asarray(targets)
    losses: Array = positive_part + np.log1p(np.exp(-np.abs(values)))
    return losses


def reduce_losses(losses: Array, reduction: str) -> Array:
    """Return the mean (`mean`), the sum (`sum`), or each row's loss as it is (`none`).

    A slip to know: the mean over a data set is the sum over all *examples* divided by their number.
    Adding up the means of batches of 64 and dividing by the number of images gives a figure 64
    times too small.

    Args:
        losses: float64 [rows].
        reduction: `mean`, `sum` or `none`.

    Returns:
        float64 [] or [rows].

    Raises:
        UsageError: If the reduction is not one of them.
    """
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise UsageError(f"reduction '{reduction}' is not one of mean, sum, none")
    return np.asarray(losses.mean() if reduction == "mean" else losses.sum())


def check_targets(targets: ArrayLike, num_rows: int, num_classes: int) -> Indices:
    """Return targets as int64 [rows].

    Raises:
        UsageError: If there are not as many as rows, or one is not a class.
    """
    indices = np.asarray(targets, dtype=np.int64)
    if indices.shape != (num_rows,):
        raise UsageError(
            f"{num_rows} row{'s need' if num_rows != 1 else ' needs'} as many targets, "
            f"not {indices.size}"
        )
    for index in indices:
        if not 0 <= index < num_classes:
            only = f"0 to {num_classes - 1}" if num_classes > 1 else "0 alone"
            raise UsageError(f"target {index} is not a class: the classes are {only}")
    return indices


# torch ------------------------------------------------------------------------------------------


def torch_cross_entropy(logits: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Return each row's loss by torch, from LogSoftmax + NLLLoss and from CrossEntropyLoss.

    Both take raw logits; the second is the first two in one.

    Args:
        logits: float [rows, classes].
        targets: int [rows], class indices.

    Returns:
        Two of float64 [rows].
    """
    import torch

    values = torch.tensor(np.asarray(logits, dtype=np.float64))
    labels = torch.tensor(np.asarray(targets, dtype=np.int64))
    in_two = torch.nn.NLLLoss(reduction="none")(torch.nn.LogSoftmax(dim=1)(values), labels)
    in_one = torch.nn.CrossEntropyLoss(reduction="none")(values, labels)
    return in_two.numpy(), in_one.numpy()


def torch_binary_cross_entropy(logits: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Return each example's loss by torch, from Sigmoid + BCELoss and from BCEWithLogitsLoss.

    BCELoss cuts its logarithms at -100 (its documentation), so the first is never above 100.

    Args:
        logits: float [rows].
        targets: int [rows], 1 for yes and 0 for no.

    Returns:
        Two of float64 [rows].
    """
    import torch

    values = torch.tensor(np.asarray(logits, dtype=np.float64))
    labels = torch.tensor(np.asarray(targets, dtype=np.float64))
    in_two = torch.nn.BCELoss(reduction="none")(torch.nn.Sigmoid()(values), labels)
    in_one = torch.nn.BCEWithLogitsLoss(reduction="none")(values, labels)
    return in_two.numpy(), in_one.numpy()
