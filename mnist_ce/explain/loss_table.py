"""The loss of given numbers, computed by several methods that must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.reference_losses import Array, Indices
from mnist_ce.system.errors import UsageError

# [rows, classes] logits or probabilities ([rows] for yes/no), [rows] targets → [rows] losses
Method: TypeAlias = Callable[[Array, Indices], Array]
Numbers: TypeAlias = Sequence[Sequence[float]] | NDArray[np.floating]

LARGEST_LOGIT = float(np.finfo(np.float32).max)  # a float32 network cannot output more

WHY_NO_SOFTMAX = (
    "CrossEntropyLoss takes raw logits and applies log-softmax itself, in a form that cannot "
    "overflow. With a softmax at the network's end, softmax would be applied twice. Predictions "
    "need none either: the largest logit is the largest probability."
)
WHY_NO_SIGMOID = (
    "BCEWithLogitsLoss takes the raw logit and applies the sigmoid itself, in a form that keeps "
    "the loss accurate where the sigmoid is rounded to 0 or 1. BCELoss gets only the rounded "
    "probability there: it clamps the logarithm at -100, and the gradient is 0. With a sigmoid at "
    "the network's end, sigmoid would be applied twice. Predictions need none either: yes is a "
    "logit above 0."
)
NOTE_NAIVE = (
    "The textbook formula -log(exp z_y / sum exp z) gives {} here, as exp overflows or underflows. "
    "The stable form is used: exp(z - max z) in place of exp z leaves the ratio unchanged."
)
NOTE_UNDERFLOW = "The target's softmax underflows, so the first method uses log-softmax."
NOTE_IMPOSSIBLE = "The target's logit is -inf: its probability is 0 and the loss is inf."
NOTE_ONE_CLASS = "With one class, softmax is always 1 and the loss always 0."
NOTE_ZERO_PROBABILITY = "The target's probability is 0: the loss is inf."
NOTE_ROUNDED = "The probabilities sum to 1 only up to rounding; they are used as given."
NOTE_SIGMOID = (
    "The sigmoid is rounded too close to 0 or 1 to compute the loss from it, and BCELoss clamps "
    "the loss at 100. The formula on the raw logit is accurate and is used."
)


@dataclass(frozen=True)
class LossTable:
    """The loss of some examples (rows), built by `loss_table`."""

    kind: str  # logits, probabilities or binary
    class_names: tuple[str, ...]
    targets: Indices  # [rows]
    logits: Array | None  # [rows, classes], or [rows, 1] for binary; None for probabilities
    probabilities: Array  # [rows, classes]
    example_losses: dict[str, Array]  # [rows] by method; the last method is the one training uses
    naive_losses: Array  # [rows], by the textbook formula; NaN where exp overflows
    double_softmax_losses: Array  # [rows], softmax (or sigmoid) applied to the probabilities too
    reduction: str  # mean, sum or none

    def __post_init__(self) -> None:
        self._reduce(self.naive_losses)  # raises for a reduction that does not exist

    @property
    def class_logits(self) -> Array | None:
        """The logit of each class; a sigmoid is the softmax of (0, z), so no has the logit 0."""
        if self.logits is None or self.kind != "binary":
            return self.logits
        return np.concatenate([np.zeros_like(self.logits), self.logits], axis=1)

    @property
    def negative_logs(self) -> Array:
        """-log p of each class, the loss if it were the target, float64 [rows, classes]."""
        if self.class_logits is not None:
            return 0.0 - formulas.log_softmax(self.class_logits)
        with np.errstate(divide="ignore"):
            return np.asarray(0.0 - np.log(self.probabilities))

    @property
    def gradients(self) -> Array | None:
        """The gradient of each row's loss by its class logits, p - y, float64 [rows, classes]."""
        if self.class_logits is None:
            return None
        return self.probabilities - formulas.one_hot(self.targets, len(self.class_names))

    @property
    def predictions(self) -> Indices:
        """The index of each row's largest logit (or probability), int64 [rows]."""
        scores = self.probabilities if self.class_logits is None else self.class_logits
        return np.asarray(scores.argmax(axis=1))

    @property
    def losses(self) -> dict[str, Array]:
        """The reduced loss by each method, float64 [] or [rows]."""
        return {method: self._reduce(losses) for method, losses in self.example_losses.items()}

    @property
    def training_losses(self) -> Array:
        """Each row's loss by the method that training uses, float64 [rows]."""
        return list(self.example_losses.values())[-1]

    @property
    def double_softmax_loss(self) -> Array:
        """The reduced loss with softmax (or sigmoid) applied twice, float64 [] or [rows]."""
        return self._reduce(self.double_softmax_losses)

    @property
    def double_softmax_lower_bound(self) -> float:
        """The least `double_softmax_loss`: logits of 1 for the target and 0 for other classes."""
        bound = float(np.log1p((len(self.class_names) - 1) / np.e))
        return bound * (len(self.targets) if self.reduction == "sum" else 1)

    @property
    def agree(self) -> bool:
        """Whether all methods give the same loss."""
        first, *others = self.losses.values()
        return all(_close(first, other).all() for other in others)

    @property
    def rationale(self) -> str:
        """Why the network ends in raw logits."""
        return WHY_NO_SIGMOID if self.kind == "binary" else WHY_NO_SOFTMAX

    @property
    def notes(self) -> list[str]:
        """Anything unusual about the numbers, in sentences."""
        inexact = ~_close(self.naive_losses, self.training_losses)
        naive = self.naive_losses[inexact][0] if inexact.any() else None
        is_infinite = np.isinf(self.training_losses).any()
        is_rounded = (np.abs(self.probabilities.sum(axis=1) - 1) > 1e-9).any()
        underflows = _underflows(self.probabilities, self.targets, self.training_losses).any()
        notes = {
            "logits": {
                NOTE_NAIVE.format(naive): inexact.any(),
                NOTE_UNDERFLOW: underflows,
                NOTE_IMPOSSIBLE: is_infinite,
                NOTE_ONE_CLASS: len(self.class_names) == 1,
            },
            "probabilities": {NOTE_ZERO_PROBABILITY: is_infinite, NOTE_ROUNDED: is_rounded},
            "binary": {NOTE_SIGMOID: inexact.any()},
        }
        return [note for note, applies in notes[self.kind].items() if applies]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; infinity and NaN, which JSON lacks, as `"Infinity"` and `"NaN"`."""
        losses = {method: to_json(loss) for method, loss in self.losses.items()}
        with np.errstate(over="ignore"):
            exp_logits = None if self.logits is None else np.exp(self.logits)
        gradients = self.gradients
        return {
            "kind": self.kind,
            "reduction": self.reduction,
            "loss": list(losses.values())[-1],
            "losses": losses,
            "agree": self.agree,
            "naive_loss": to_json(self._reduce(self.naive_losses)),
            "class_names": list(self.class_names),
            "rows": [
                {
                    "target": int(target),
                    "prediction": int(self.predictions[row]),
                    "logits": None if self.logits is None else to_json(self.logits[row]),
                    "exp_logits": None if exp_logits is None else to_json(exp_logits[row]),
                    "probabilities": to_json(self.probabilities[row]),
                    "negative_log_probabilities": to_json(self.negative_logs[row]),
                    "gradient": None if gradients is None else to_json(gradients[row]),
                    "loss": to_json(self.training_losses[row]),
                    "loss_applied_twice": to_json(self.double_softmax_losses[row]),
                }
                for row, target in enumerate(self.targets)
            ],
            "loss_applied_twice": to_json(self.double_softmax_loss),
            "least_loss_applied_twice": self.double_softmax_lower_bound,
            "why_raw_logits": self.rationale,
            "notes": self.notes,
        }

    def _reduce(self, losses: Array) -> Array:
        return formulas.reduce_losses(losses, self.reduction)


def loss_table(
    kind: str,
    numbers: Numbers,
    targets: Sequence[int],
    *,
    reduction: str = "mean",
    class_names: Sequence[str] | None = None,
) -> LossTable:
    """Compute the loss of given numbers by every method of their kind.

    `numbers` are [rows, classes] for the kinds `logits` (-inf is an impossible class) and
    `probabilities` (rows sum to 1, up to rounding to four decimals), and [rows, 1] logits for
    `binary`. The targets are [rows] class indices, 1 for yes and 0 for no. Without names the
    classes are `no` and `yes` for `binary`, else their indices.

    Raises:
        UsageError: If a number, a target or the reduction (mean, sum or none) is not valid.
    """
    is_binary = kind == "binary"
    if is_binary and any(len(row) != 1 for row in numbers):
        raise UsageError("--binary takes one logit per row; write several rows as 1.2; -0.3")
    values = _check_numbers(numbers, "probabilities" if kind == "probabilities" else "logits")
    num_classes = 2 if is_binary else values.shape[1]
    names = class_names or (("no", "yes") if is_binary else map(str, range(num_classes)))
    indices = formulas.check_targets(targets, len(values), num_classes)
    inputs = values[:, 0] if is_binary else values
    if is_binary:
        probabilities = np.stack([formulas.sigmoid(-inputs), formulas.sigmoid(inputs)], axis=1)
        double = formulas.binary_cross_entropy_with_logits(probabilities[:, 1], indices)
    else:
        probabilities = values if kind == "probabilities" else formulas.softmax(values)
        double = formulas.cross_entropy(probabilities, indices)
    with np.errstate(divide="ignore"):  # log 0 is -inf
        losses = {name: f(inputs, indices) + 0.0 for name, f in METHODS[kind].items()}  # no -0.0
        naive = next(iter(losses.values()))
        if kind == "logits":
            naive = _negative_log(formulas.naive_softmax(values), indices)
    return LossTable(
        kind=kind,
        class_names=tuple(names),
        targets=indices,
        logits=None if kind == "probabilities" else values,
        probabilities=probabilities,
        example_losses=losses,
        naive_losses=naive,
        double_softmax_losses=double,
        reduction=reduction,
    )


def _negative_log(probabilities: Array, targets: Indices) -> Array:
    return np.asarray(0.0 - np.log(formulas.at_targets(probabilities, targets)))


def _negative_log_softmax(logits: Array, targets: Indices) -> Array:
    probabilities, exact = formulas.softmax(logits), formulas.cross_entropy(logits, targets)
    underflows = _underflows(probabilities, targets, exact)
    return np.where(underflows, exact, _negative_log(probabilities, targets))


def _cross_entropy_of_one_hot(probabilities: Array, targets: Indices) -> Array:
    weights = formulas.one_hot(targets, probabilities.shape[1])
    return formulas.cross_entropy_of_probabilities(probabilities, weights)


def _underflows(probabilities: Array, targets: Indices, losses: Array) -> NDArray[np.bool_]:
    # Below its smallest normal number, float64 loses digits.
    is_subnormal = formulas.at_targets(probabilities, targets) < np.finfo(np.float64).tiny
    return np.asarray(is_subnormal & np.isfinite(losses))


def _close(losses: Array, others: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isclose(losses, others, rtol=1e-7, atol=1e-9))


METHODS: dict[str, dict[str, Method]] = {
    "logits": {
        "negative_log_softmax": _negative_log_softmax,
        "log_sum_exp": formulas.cross_entropy,
        "log_softmax_nll_loss": formulas.log_softmax_nll_loss,
        "cross_entropy_loss": formulas.cross_entropy_loss,
    },
    "probabilities": {
        "one_hot": _cross_entropy_of_one_hot,
        "nll_loss": lambda p, y: formulas.nll_loss(np.log(p), y),
        "negative_log": _negative_log,
    },
    "binary": {
        "negative_log_sigmoid": lambda z, y: formulas.binary_cross_entropy(formulas.sigmoid(z), y),
        "stable_formula": formulas.binary_cross_entropy_with_logits,
        "sigmoid_bce_loss": formulas.sigmoid_bce_loss,
        "bce_with_logits_loss": formulas.bce_with_logits_loss,
    },
}


def _check_numbers(numbers: Numbers, what: str) -> Array:
    lengths = {len(row) for row in numbers}
    if not lengths or 0 in lengths:
        raise UsageError(f"there are no {what}: give numbers, as in 2.0,1.0,0.1")
    if len(lengths) > 1:
        raise UsageError(f"the rows of {what} differ in length: {min(lengths)} to {max(lengths)}")
    values = np.array(numbers, dtype=np.float64)
    find_problem = _problem_of_logits if what == "logits" else _problem_of_probabilities
    for number, row in enumerate(values):
        if problem := find_problem(row):
            place = f" of row {number}" if len(values) > 1 else ""
            raise UsageError(f"the {what}{place} {problem}")
    return values


def _problem_of_logits(row: Array) -> str | None:
    if np.isnan(row).any():
        return "contain nan, of which there is no softmax"
    if (row == np.inf).any():
        return "contain inf: inf / inf is undefined; give a finite number"
    if (np.abs(row[np.isfinite(row)]) > LARGEST_LOGIT).any():
        return f"contain a number beyond {LARGEST_LOGIT:.1e}, float32's largest"
    is_empty = row.max() == -np.inf
    return "contain nothing above -inf: no class would be possible" if is_empty else None


def _problem_of_probabilities(row: Array) -> str | None:
    valid = (row >= 0) & (row <= 1)
    if not valid.all():
        return f"contain {row[~valid][0]:g}, not in [0, 1]; for logits use --logits"
    if abs(row.sum() - 1) > 0.5e-4 * len(row):  # as probabilities with four decimals may
        return f"sum to {row.sum():.6g}, not 1; for logits use --logits"
    return None


def to_json(value: float | Array) -> Any:  # noqa: ANN401 - a number, string or list
    """Return numbers as JSON can hold them: what is not finite as a string, as in proto3."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [to_json(item) for item in value]
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return names.get(str(float(value)), float(value))
