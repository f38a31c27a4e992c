"""The loss of given numbers by its formulas, computed by several methods that must agree.

Training uses torch's losses; the formulas are for reading, and show that all give the same numbers.
All is float64, in nats. A row is one example: logits z or probabilities p, [classes], and the index
y of its target. A yes/no network's logit z is the row (0, z): a sigmoid is a softmax of these two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from scipy import special

from mnist_ce.system.errors import UsageError

Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[Sequence[float]] | NDArray[np.floating]
Method: TypeAlias = tuple[Callable[[Array, int], float], str, str, str]

FIRST = "the textbook: the probability first, then its logarithm"
REARRANGED = "the same, rearranged so that nothing overflows"
USED = "torch in one call, on raw logits: what training uses"

LARGEST_LOGIT = float(np.finfo(np.float32).max)  # a float32 network cannot output more
SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)  # below it, float64 loses digits

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


def softmax(z: Array) -> Array:
    """Return exp(z_i - m) / Σ_j exp(z_j - m), with m = max_j z_j.

    exp(-m) cancels, and no exponent above 0 can overflow (Goodfellow, Bengio and Courville 2016,
    *Deep Learning*, section 4.1).
    """
    powers = np.exp(z - z.max())
    return np.asarray(powers / powers.sum())


def log_softmax(z: Array) -> Array:
    """Return z_i - m - log Σ_j exp(z_j - m), finite where softmax underflows; m as there."""
    shifted = z - z.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def cross_entropy(z: Array, y: int) -> float:
    """Return -z_y + log Σ_j exp(z_j), which is inf where z_y is -inf, an impossible class."""
    return 0.0 - float(log_softmax(z)[y])


def binary_cross_entropy(z: Array, y: int) -> float:
    """Return max(z, 0) - z y + log(1 + exp(-|z|)).

    Derived in TensorFlow's documentation of `sigmoid_cross_entropy_with_logits`.
    """
    return float(max(z[1], 0.0) - z[1] * y + np.log1p(np.exp(-abs(z[1]))))


def torch_loss(modules: str, values: Array, y: int) -> float:
    """Return the loss by modules of `torch.nn`: `CrossEntropyLoss`, or `LogSoftmax + NLLLoss`.

    That of `BCELoss` is at most 100, as it clamps log p at -100.
    """
    import torch

    *before, name = modules.split(" + ")
    outputs, target = torch.tensor(values)[None], torch.tensor([y])  # [1, classes], [1]
    if name.startswith("BCE"):
        outputs, target = outputs[:, 1], target.double()
    if before:
        outputs = outputs.sigmoid() if before == ["Sigmoid"] else outputs.log_softmax(dim=1)
    loss: torch.Tensor = getattr(torch.nn, name)()(outputs, target)
    return loss.item()


def _negative_log_softmax(z: Array, y: int) -> float:
    p = softmax(z)[y]
    return cross_entropy(z, y) if p < SMALLEST_NORMAL else -float(np.log(p))


def _by_torch(modules: str, meaning: str) -> Method:
    return partial(torch_loss, modules), "torch", modules, meaning


# By kind of numbers and JSON name: the function of a row and its target, its library, formula and
# meaning; training uses the last.
METHODS: dict[str, dict[str, Method]] = {
    "logits": {
        "negative_log_softmax": (_negative_log_softmax, "NumPy", "-log softmax(z)[target]", FIRST),
        "log_sum_exp": (cross_entropy, "NumPy", "-z[target] + log sum exp z", REARRANGED),
        "log_softmax_nll_loss": _by_torch(
            "LogSoftmax + NLLLoss", "torch in two parts: all logarithms, then the right one"
        ),
        "cross_entropy_loss": _by_torch("CrossEntropyLoss", USED),
    },
    "probabilities": {
        "one_hot": (
            # A term with y_i = 0 is 0: the limit of y log p (Cover and Thomas 2006, section 2.1).
            lambda p, y: -float(special.xlogy(np.eye(len(p))[y], p).sum()),
            *("NumPy", "-sum onehot * log p", "the definition"),
        ),
        "nll_loss": (
            lambda p, y: torch_loss("NLLLoss", np.log(p), y),
            *("torch", "NLLLoss of log p", "torch, given all logarithms"),
        ),
        "negative_log": (
            lambda p, y: -float(np.log(p[y])),
            *("NumPy", "-log p[target]", "the one term that is not 0"),
        ),
    },
    "binary": {
        "negative_log_sigmoid": (
            lambda z, y: -float(np.log(softmax(z)[1] if y else 1 - softmax(z)[1])),
            *("NumPy", "-log p, p from sigmoid(z)", FIRST),
        ),
        "stable_formula": (
            *(binary_cross_entropy, "NumPy"),
            *("max(z,0) - z*y + log(1+exp(-|z|))", REARRANGED),
        ),
        "sigmoid_bce_loss": _by_torch(
            "Sigmoid + BCELoss", "torch in two parts: inexact where the sigmoid is rounded"
        ),
        "bce_with_logits_loss": _by_torch("BCEWithLogitsLoss", USED),
    },
}


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
    if len(targets) != len(values):
        need = "row needs" if len(values) == 1 else "rows need"
        raise UsageError(f"{len(values)} {need} as many targets, not {len(targets)}")
    if wrong := [target for target in targets if not 0 <= target < num_classes]:
        only = f"0 to {num_classes - 1}" if num_classes > 1 else "0 alone"
        raise UsageError(f"target {wrong[0]} is not a class: the classes are {only}")
    reductions: dict[str, Callable[..., Any]] = {"mean": np.mean, "sum": np.sum, "none": np.array}
    reduce = reductions.get(reduction)
    if reduce is None:
        raise UsageError(f"reduction '{reduction}' is not one of mean, sum, none")
    rows = [_explain_row(kind, row, y) for row, y in zip(values, targets, strict=True)]

    def reduced(losses: Sequence[float]) -> Any:  # noqa: ANN401 - a number, or a list for none
        return reduce(losses).tolist()

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
        "agree": all(_are_close(first, other) for other in others),
        "naive_loss": reduced([row["naive_loss"] for row in rows]),
        "class_names": list(
            class_names or (("no", "yes") if is_binary else map(str, range(num_classes)))
        ),
        "rows": rows,
        "loss_applied_twice": reduced([row["loss_applied_twice"] for row in rows]),
        "least_loss_applied_twice": least_twice * (len(rows) if reduction == "sum" else 1),
        "why_raw_logits": WHY_NO_SIGMOID if is_binary else WHY_NO_SOFTMAX,
        "notes": list(dict.fromkeys(note for row in rows for note in row["notes"])),
    }


def _explain_row(kind: str, numbers: Array, y: int) -> dict[str, Any]:
    values = np.append(0.0, numbers) if kind == "binary" else numbers
    has_logits = kind != "probabilities"
    p = softmax(values) if has_logits else values
    with np.errstate(all="ignore"):  # log 0 is -inf, exp 1000 is inf
        # Without -0.0.
        losses = {name: compute(values, y) + 0.0 for name, (compute, *_) in METHODS[kind].items()}
        naive = next(iter(losses.values()))
        if kind == "logits":
            naive = float(0.0 - np.log(np.exp(values[y]) / np.exp(values).sum()))
        logs = log_softmax(values) if has_logits else np.log(p)
        powers = np.exp(numbers).tolist() if has_logits else None
    loss = list(losses.values())[-1]  # by the method that training uses
    is_inexact, underflows = not _are_close(naive, loss), p[y] < SMALLEST_NORMAL and loss < np.inf
    notes = {
        "logits": {
            NOTE_NAIVE.format(naive): is_inexact,
            "The target's softmax underflows, so the first method uses log-softmax.": underflows,
            "The target's logit is -inf: its probability is 0 and the loss is inf.": np.isinf(loss),
            "With one class, softmax is always 1 and the loss always 0.": len(p) == 1,
        },
        "probabilities": {
            "The target's probability is 0: the loss is inf.": np.isinf(loss),
            "The probabilities sum to 1 only up to rounding; they are used as given.": (
                abs(p.sum() - 1) > 1e-9
            ),
        },
        "binary": {NOTE_SIGMOID: is_inexact},
    }[kind]
    twice = cross_entropy(np.array([0.0, p[1]]) if kind == "binary" else p, y)
    return {
        "target": int(y),
        "prediction": int(values.argmax()),
        "logits": numbers.tolist() if has_logits else None,
        "exp_logits": powers,
        "probabilities": p.tolist(),
        "negative_log_probabilities": (0.0 - logs).tolist(),
        "gradient": (p - np.eye(len(p))[y]).tolist() if has_logits else None,  # by each logit
        "loss": loss,
        "losses": losses,
        "naive_loss": naive,  # by the textbook formula; NaN where exp overflows
        "loss_applied_twice": twice,
        "notes": [note for note, applies in notes.items() if applies],
    }


def _are_close(losses: Any, others: Any) -> bool:  # noqa: ANN401
    return bool(np.isclose(losses, others, rtol=1e-7, atol=1e-9).all())


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
