"""Softmax and cross-entropy as formulas in NumPy, and as torch's loss modules.

For reading, for `mnist-ce explain` and for tests; training uses torch's losses, and the tests show
that both give the same numbers. All is computed in float64.

A row is one example. Logits and probabilities are float [rows, classes] for class indices int
[rows], or float [rows] for yes/no labels, int [rows], 1 for yes. A loss is float64 [rows], in nats.
A target that is not a class raises `UsageError`. Only the last function imports torch.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnist_ce.system.errors import UsageError

Array: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


def naive_softmax(logits: ArrayLike) -> Array:
    """Return exp(z_i) / Σ_j exp(z_j), NaN where exp overflows (above 709) or every term is 0."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        powers = np.exp(np.asarray(logits, dtype=np.float64))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def softmax(logits: ArrayLike, axis: int = -1) -> Array:
    """Return exp(z_i - m) / Σ_j exp(z_j - m), with m = max_j z_j, float64 [..., classes].

    exp(-m) cancels, and no exponent above 0 can overflow (Goodfellow, Bengio and Courville 2016,
    *Deep Learning*, section 4.1). Classes are the last axis: over axis 0, each column sums to 1.
    """
    values = np.asarray(logits, dtype=np.float64)
    powers: Array = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def log_softmax(logits: ArrayLike) -> Array:
    """Return z_i - m - log Σ_j exp(z_j - m), finite where softmax underflows; m as there."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def one_hot(targets: ArrayLike, num_classes: int) -> Array:
    """Return float64 [rows, num_classes]: 1 at each target's class, 0 elsewhere."""
    return np.asarray(np.eye(num_classes)[check_targets(targets, np.size(targets), num_classes)])


def cross_entropy(logits: ArrayLike, targets: ArrayLike) -> Array:
    """Return -z_y + log Σ_j exp(z_j), which forms no probability that might underflow to 0.

    It is +inf where the target's logit is -inf, an impossible class.
    """
    values = np.asarray(logits, dtype=np.float64)
    indices = check_targets(targets, *values.shape)
    return np.asarray(0.0 - at_targets(log_softmax(values), indices))


def cross_entropy_of_probabilities(probabilities: ArrayLike, targets: ArrayLike) -> Array:
    """Return H(y, p) = -Σ_i y_i log p_i, for any distribution y, float [rows, classes].

    A term with y_i = 0 is 0: the limit of y log p (Cover and Thomas 2006, section 2.1).
    """
    weights = np.asarray(targets, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.asarray(probabilities, dtype=np.float64))
    terms = np.multiply(weights, logarithms, where=weights > 0, out=np.zeros_like(logarithms))
    return np.asarray(0.0 - terms.sum(axis=-1))


def sigmoid(logits: ArrayLike) -> Array:
    """Return 1 / (1 + exp(-z)), the softmax of (z, 0): the probability of yes."""
    values = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(values))  # the exponent is at most 0, so it cannot overflow
    return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small))


def binary_cross_entropy(probabilities: ArrayLike, targets: ArrayLike) -> Array:
    """Return -y log p - (1-y) log(1-p), p the probability of yes."""
    yes = np.asarray(probabilities, dtype=np.float64)
    both = np.stack([1.0 - yes, yes], axis=-1)  # → [rows, 2]
    return cross_entropy_of_probabilities(both, one_hot(targets, 2))


def binary_cross_entropy_with_logits(logits: ArrayLike, targets: ArrayLike) -> Array:
    """Return max(z, 0) - z y + log(1 + exp(-|z|)).

    Derived in TensorFlow's documentation of `sigmoid_cross_entropy_with_logits`.
    """
    values = np.asarray(logits, dtype=np.float64)
    positive_part = np.maximum(values, 0.0) - values * np.asarray(targets)
    return np.asarray(positive_part + np.log1p(np.exp(-np.abs(values))))


def reduce_losses(losses: Array, reduction: str) -> Array:
    """Return the `mean` or `sum` of the losses, float64 [], or for `none` the losses, [rows]."""
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise UsageError(f"reduction '{reduction}' is not one of mean, sum, none")
    return np.asarray(losses.mean() if reduction == "mean" else losses.sum())


def at_targets(values: Array, targets: Indices) -> Array:
    """Return each row's value at its target: float64 [rows, classes] → [rows]."""
    return np.asarray(values[np.arange(len(values)), targets])


def check_targets(targets: ArrayLike, num_rows: int, num_classes: int) -> Indices:
    """Return targets as int64 [rows]; raises if there are not as many, or one is not a class."""
    indices = np.asarray(targets, dtype=np.int64)
    if indices.shape != (num_rows,):
        need = "row needs" if num_rows == 1 else "rows need"
        raise UsageError(f"{num_rows} {need} as many targets, not {indices.size}")
    for index in indices:
        if not 0 <= index < num_classes:
            only = f"0 to {num_classes - 1}" if num_classes > 1 else "0 alone"
            raise UsageError(f"target {index} is not a class: the classes are {only}")
    return indices


def torch_loss(modules: str, values: ArrayLike, targets: ArrayLike) -> Array:
    """Return the losses by modules of `torch.nn`: `CrossEntropyLoss`, or `LogSoftmax + NLLLoss`.

    That of `BCELoss` is at most 100, as it clamps log p at -100.
    """
    import torch

    outputs = torch.tensor(np.asarray(values, dtype=np.float64))
    labels = torch.tensor(np.asarray(targets, dtype=np.int64))
    *before, name = modules.split(" + ")
    if before:
        outputs = outputs.sigmoid() if before == ["Sigmoid"] else outputs.log_softmax(dim=1)
    loss = getattr(torch.nn, name)(reduction="none")
    return np.asarray(loss(outputs, labels.double() if name.startswith("BCE") else labels))
