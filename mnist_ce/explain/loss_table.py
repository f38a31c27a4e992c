"""What an explanation holds: the rows, and their loss in all ways of computing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.reference_losses import Array, reduce_losses

__all__ = ["Explanation", "Row", "plain_number"]

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
        floor_twice: The least loss of a row that softmax (or sigmoid) applied twice can reach.
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
    def least_twice(self) -> float:
        """What `twice` cannot fall below, for a row where nothing is reduced."""
        return self.floor_twice * (len(self.rows) if self.reduction == "sum" else 1)

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
            "least_loss_applied_twice": self.least_twice,
            "why_raw_logits": self.why,
            "notes": list(self.notes),
        }


def _exp(logits: Array | None) -> Array | None:
    with np.errstate(over="ignore"):
        return None if logits is None else np.exp(logits)


def plain_number(value: float | Array | None) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return numbers as JSON can hold them: what is not finite as a string, as proto3 has it."""
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain_number(item) for item in value]
    number = float(value)
    if np.isfinite(number):
        return number
    return "NaN" if np.isnan(number) else "Infinity" if number > 0 else "-Infinity"
