"""The loss of given numbers, computed by several methods that must agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.reference_losses import Array, Indices
from mnist_ce.system.errors import UsageError

Numbers: TypeAlias = Sequence[Sequence[float]] | NDArray[np.floating]
Method: TypeAlias = tuple[Callable[[Array, Indices], Array], str, str, str]

FIRST = "the textbook: the probability first, then its logarithm"
REARRANGED = "the same, rearranged so that nothing overflows"
USED = "torch in one call, on raw logits: what training uses"

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
NOTE_SIGMOID = (
    "The sigmoid is rounded too close to 0 or 1 to compute the loss from it, and BCELoss clamps "
    "the loss at 100. The formula on the raw logit is accurate and is used."
)


def explain_loss(
    kind: str,
    numbers: Numbers,
    targets: Sequence[int],
    *,
    reduction: str = "mean",
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compute the loss of given numbers by every method of their kind.

    `numbers` are [rows, classes] for the kinds `logits` (-inf is an impossible class) and
    `probabilities` (rows sum to 1, up to rounding to four decimals), and [rows, 1] logits for
    `binary`. The targets are [rows] class indices, 1 for yes and 0 for no. Without names the
    classes are `no` and `yes` for `binary`, else their indices.

    Returns the content of `mnist-ce explain --json`, as floats and lists of them.

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
    rows = [explain_row(kind, row, index) for row, index in zip(values, indices, strict=True)]

    def reduced(losses: Sequence[float]) -> Any:  # noqa: ANN401 - a number, or a list for none
        return formulas.reduce_losses(np.array(losses), reduction).tolist()

    methods = METHODS[kind]
    losses = {name: reduced([row["losses"][name] for row in rows]) for name in methods}
    first, *others = losses.values()
    # The least loss with softmax applied twice: logits of 1 for the target, 0 for other classes.
    least_twice = float(np.log1p((num_classes - 1) / np.e))
    return {
        "kind": kind,
        "reduction": reduction,
        "loss": losses[list(methods)[-1]],
        "losses": losses,
        "methods": {name: list(method[1:]) for name, method in methods.items()},
        "agree": all(bool(_close(first, other).all()) for other in others),
        "naive_loss": reduced([row["naive_loss"] for row in rows]),
        "class_names": list(names),
        "rows": rows,
        "loss_applied_twice": reduced([row["loss_applied_twice"] for row in rows]),
        "least_loss_applied_twice": least_twice * (len(rows) if reduction == "sum" else 1),
        "why_raw_logits": WHY_NO_SIGMOID if is_binary else WHY_NO_SOFTMAX,
        "notes": list(dict.fromkeys(note for row in rows for note in row["notes"])),
    }


def explain_row(kind: str, numbers: Array, target: int) -> dict[str, Any]:
    """Compute the loss of one example, [classes] or for `binary` [1], and what leads to it."""
    index = np.array([target])
    rows = numbers if kind == "binary" else numbers[None]  # what a method takes of one example
    logits = {"logits": numbers, "binary": np.array([0.0, numbers[0]]), "probabilities": None}[kind]
    if kind == "binary":  # a sigmoid is the softmax of (0, z), so `no` has the logit 0
        probabilities = np.concatenate([formulas.sigmoid(-numbers), formulas.sigmoid(numbers)])
        twice = formulas.binary_cross_entropy_with_logits(probabilities[1:], index)
    else:
        probabilities = numbers if logits is None else formulas.softmax(numbers)
        twice = formulas.cross_entropy(probabilities[None], index)
    with np.errstate(divide="ignore", over="ignore"):  # log 0 is -inf, exp 1000 is inf
        losses = {
            name: compute(rows, index).item() + 0.0  # no -0.0
            for name, (compute, *_) in METHODS[kind].items()
        }
        logs = np.log(probabilities) if logits is None else formulas.log_softmax(logits)
        powers = None if logits is None else np.exp(numbers).tolist()
        naive = next(iter(losses.values()))
        if kind == "logits":
            naive = _negative_log(formulas.naive_softmax(rows), index).item()
    loss = list(losses.values())[-1]  # by the method that training uses
    is_inexact = not _close(naive, loss)
    underflows = _underflows(probabilities[None], index, np.array([loss])).any()
    is_rounded = abs(probabilities.sum() - 1) > 1e-9
    notes = {
        "logits": {
            NOTE_NAIVE.format(naive): is_inexact,
            "The target's softmax underflows, so the first method uses log-softmax.": underflows,
            "The target's logit is -inf: its probability is 0 and the loss is inf.": np.isinf(loss),
            "With one class, softmax is always 1 and the loss always 0.": len(probabilities) == 1,
        },
        "probabilities": {
            "The target's probability is 0: the loss is inf.": np.isinf(loss),
            "The probabilities sum to 1 only up to rounding; they are used as given.": is_rounded,
        },
        "binary": {NOTE_SIGMOID: is_inexact},
    }[kind]
    gradient = None
    if logits is not None:
        gradient = (probabilities - formulas.one_hot(index, len(probabilities))[0]).tolist()
    return {
        "target": int(target),
        "prediction": int((probabilities if logits is None else logits).argmax()),
        "logits": None if logits is None else numbers.tolist(),
        "exp_logits": powers,
        "probabilities": probabilities.tolist(),
        "negative_log_probabilities": (0.0 - logs).tolist(),
        "gradient": gradient,  # by the logit of each class: p - y
        "loss": loss,
        "losses": losses,
        "naive_loss": naive,  # by the textbook formula; NaN where exp overflows
        "loss_applied_twice": twice.item(),
        "notes": [note for note, applies in notes.items() if applies],
    }


def _negative_log(probabilities: Array, targets: Indices) -> Array:
    return np.asarray(0.0 - np.log(formulas.at_targets(probabilities, targets)))


def _negative_log_softmax(logits: Array, targets: Indices) -> Array:
    probabilities, exact = formulas.softmax(logits), formulas.cross_entropy(logits, targets)
    underflows = _underflows(probabilities, targets, exact)
    return np.where(underflows, exact, _negative_log(probabilities, targets))


def _underflows(probabilities: Array, targets: Indices, losses: Array) -> NDArray[np.bool_]:
    # Below its smallest normal number, float64 loses digits.
    is_subnormal = formulas.at_targets(probabilities, targets) < np.finfo(np.float64).tiny
    return np.asarray(is_subnormal & np.isfinite(losses))


def _close(losses: Any, others: Any) -> NDArray[np.bool_]:  # noqa: ANN401
    return np.asarray(np.isclose(losses, others, rtol=1e-7, atol=1e-9))


def _by_torch(modules: str, meaning: str) -> Method:
    return partial(formulas.torch_loss, modules), "torch", modules, meaning


# By kind of numbers and JSON name: the function of [rows, classes] logits or probabilities ([rows]
# for yes/no) and [rows] targets, its library, formula and meaning; training uses the last.
METHODS: dict[str, dict[str, Method]] = {
    "logits": {
        "negative_log_softmax": (_negative_log_softmax, "NumPy", "-log softmax(z)[target]", FIRST),
        "log_sum_exp": (formulas.cross_entropy, "NumPy", "-z[target] + log sum exp z", REARRANGED),
        "log_softmax_nll_loss": _by_torch(
            "LogSoftmax + NLLLoss", "torch in two parts: all logarithms, then the right one"
        ),
        "cross_entropy_loss": _by_torch("CrossEntropyLoss", USED),
    },
    "probabilities": {
        "one_hot": (
            lambda p, y: formulas.cross_entropy_of_probabilities(
                p, formulas.one_hot(y, p.shape[1])
            ),
            *("NumPy", "-sum onehot * log p", "the definition"),
        ),
        "nll_loss": (
            lambda p, y: formulas.torch_loss("NLLLoss", np.log(p), y),
            *("torch", "NLLLoss of log p", "torch, given all logarithms"),
        ),
        "negative_log": (_negative_log, "NumPy", "-log p[target]", "the one term that is not 0"),
    },
    "binary": {
        "negative_log_sigmoid": (
            lambda z, y: formulas.binary_cross_entropy(formulas.sigmoid(z), y),
            *("NumPy", "-log p, p from sigmoid(z)", FIRST),
        ),
        "stable_formula": (
            *(formulas.binary_cross_entropy_with_logits, "NumPy"),
            *("max(z,0) - z*y + log(1+exp(-|z|))", REARRANGED),
        ),
        "sigmoid_bce_loss": _by_torch(
            "Sigmoid + BCELoss", "torch in two parts: inexact where the sigmoid is rounded"
        ),
        "bce_with_logits_loss": _by_torch("BCEWithLogitsLoss", USED),
    },
}


def _check_numbers(numbers: Numbers, what: str) -> Array:
    lengths = {len(row) for row in numbers}
    if not lengths or 0 in lengths:
        raise UsageError(f"there are no {what}: give numbers, as in 2.0,1.0,0.1")
    if len(lengths) > 1:
        raise UsageError(f"the rows of {what} differ in length: {min(lengths)} to {max(lengths)}")
    values = np.array(numbers, dtype=np.float64)
    problem_of = _problem_of_logits if what == "logits" else _problem_of_probabilities
    for number, row in enumerate(values):
        if problem := problem_of(row):
            place = f" of row {number}" if len(values) > 1 else ""
            raise UsageError(f"the {what}{place} {problem}")
    return values


def _problem_of_logits(row: Array) -> str | None:
    if np.isnan(row).any():
        return "contain nan, of which there is no softmax"
    if row.max() == np.inf:
        return "contain inf: inf / inf is undefined; give a finite number"
    if row.max() == -np.inf:
        return "contain nothing above -inf: no class would be possible"
    if np.abs(row[np.isfinite(row)]).max() > LARGEST_LOGIT:
        return f"contain a number beyond {LARGEST_LOGIT:.1e}, float32's largest"
    return None


def _problem_of_probabilities(row: Array) -> str | None:
    valid = (row >= 0) & (row <= 1)
    if not valid.all():
        return f"contain {row[~valid][0]:g}, not in [0, 1]; for logits use --logits"
    if abs(row.sum() - 1) > 0.5e-4 * len(row):  # as probabilities with four decimals may
        return f"sum to {row.sum():.6g}, not 1; for logits use --logits"
    return None


def to_json(value: Any) -> Any:  # noqa: ANN401
    """Return plain values as JSON can hold them: what is not finite as a string, as in proto3."""
    return json.loads(pydantic_core.to_json(value, inf_nan_mode="strings"))
