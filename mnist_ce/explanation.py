"""Explanation: the arithmetic of a loss, with each figure reached in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ce import formulas
from mnist_ce.formulas import Array, check_targets, one_hot, reduce_losses
from mnist_ce.literals import check_logits, check_probabilities, plain_number

__all__ = [
    "Explanation",
    "Row",
    "explain_binary",
    "explain_logits",
    "explain_probabilities",
]

SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)  # below it, float64 loses digits

WHY_NO_SOFTMAX = (
    "CrossEntropyLoss takes raw logits and applies log-softmax itself, in a form that cannot "
    "overflow. With a softmax at the network's end, softmax would be applied twice. Predictions "
    "need none either: the largest logit is the largest probability."
)
WHY_NO_SIGMOID = (
    "BCEWithLogitsLoss takes the raw logit and applies the sigmoid itself, in a form that keeps "
    "the loss where the sigmoid is rounded to 0 or 1. BCELoss sees only the rounded probability "
    "there: it cuts the logarithm at -100 and has no gradient left. With a sigmoid at the "
    "network's end, sigmoid would be applied twice. Predictions need none either: yes is a logit "
    "above 0."
)


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        target: The index of the right class.
        logits: float64 [classes], or [1] for yes/no; None where probabilities were given.
        probabilities: float64 [classes].
        losses: The loss by each way of computing it.
        naive_loss: The loss by the formula as it is written; NaN where exp overflows.
        twice: The loss if the probabilities were taken for logits, so that softmax (or sigmoid) is
            applied twice.
    """

    target: int
    logits: Array | None
    probabilities: Array
    losses: dict[str, float]
    naive_loss: float
    twice: float

    @property
    def class_logits(self) -> Array | None:
        """The logit of each class; a sigmoid is the softmax of (0, z), so no has the logit 0."""
        if self.logits is None or len(self.logits) == len(self.probabilities):
            return self.logits
        return np.array([0.0, self.logits[0]])

    @property
    def negative_logs(self) -> Array:
        """-log p of each class, float64 [classes]: what the loss would be were it the target."""
        if self.class_logits is not None:
            return 0.0 - formulas.log_softmax(self.class_logits)
        with np.errstate(divide="ignore"):
            logarithms: Array = 0.0 - np.log(self.probabilities)
        return logarithms

    @property
    def prediction(self) -> int:
        """The index of the likeliest class: the largest logit needs no softmax."""
        scores = self.probabilities if self.class_logits is None else self.class_logits
        return int(scores.argmax())

    @property
    def loss(self) -> float:
        """The loss, by the way that training computes it."""
        return list(self.losses.values())[-1]


@dataclass(frozen=True)
class Explanation:
    """The loss of some rows.

    Args:
        kind: `logits`, `probabilities` or `binary`.
        class_names: What each class is called.
        rows: The examples.
        reduction: `mean`, `sum` or `none`.
        floor_twice: The least loss that softmax (or sigmoid) applied twice can reach.
        notes: What is out of the ordinary, in sentences.
    """

    kind: str
    class_names: tuple[str, ...]
    rows: tuple[Row, ...]
    reduction: str
    floor_twice: float
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        self._reduced([row.loss for row in self.rows])  # so that a wrong reduction is told at once

    @property
    def losses(self) -> dict[str, Array]:
        """The reduced loss by each way of computing it, float64 [] or [rows]."""
        return {way: self._reduced([row.losses[way] for row in self.rows]) for way in self.ways}

    @property
    def ways(self) -> list[str]:
        """The ways in which the loss is computed, the one that training uses last."""
        return list(self.rows[0].losses)

    @property
    def twice(self) -> Array:
        """The reduced loss with softmax (or sigmoid) applied twice, float64 [] or [rows]."""
        return self._reduced([row.twice for row in self.rows])

    @property
    def agree(self) -> bool:
        """Whether all ways give one number."""
        first, *others = self.losses.values()
        return all(np.allclose(first, other, rtol=1e-7, atol=1e-9) for other in others)

    @property
    def why(self) -> str:
        """Why the network ends in raw logits."""
        return WHY_NO_SIGMOID if self.kind == "binary" else WHY_NO_SOFTMAX

    def _reduced(self, losses: Sequence[float]) -> Array:
        return reduce_losses(np.array(losses), self.reduction)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; infinity and NaN, which JSON lacks, as `"Infinity"` and `"NaN"`."""
        losses = {way: plain_number(loss) for way, loss in self.losses.items()}
        return {
            "kind": self.kind,
            "reduction": self.reduction,
            "loss": losses[self.ways[-1]],
            "losses": losses,
            "agree": self.agree,
            "naive_loss": plain_number(self._reduced([row.naive_loss for row in self.rows])),
            "class_names": list(self.class_names),
            "rows": [
                {
                    "target": row.target,
                    "prediction": row.prediction,
                    "logits": plain_number(row.logits),
                    "exp_logits": plain_number(_exp(row.logits)),
                    "probabilities": plain_number(row.probabilities),
                    "negative_log_probabilities": plain_number(row.negative_logs),
                    "loss": plain_number(row.loss),
                    "loss_applied_twice": plain_number(row.twice),
                }
                for row in self.rows
            ],
            "loss_applied_twice": plain_number(self.twice),
            "least_loss_applied_twice": self.floor_twice,
            "why_raw_logits": self.why,
            "notes": list(self.notes),
        }


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


def _exp(logits: Array | None) -> Array | None:
    with np.errstate(over="ignore"):
        return None if logits is None else np.exp(logits)


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
