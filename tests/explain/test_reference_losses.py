"""The formulas against the lessons' numbers, torch and exact arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.loss import explain_loss, to_json
from mnist_ce.network.objective import Binary, Multiclass

TARGETS = [2, 0, 1]
TORCH_METHODS: list[Callable[..., Any]] = [
    partial(formulas.torch_loss, modules)
    for modules in ("LogSoftmax + NLLLoss", "CrossEntropyLoss")
]

one_logit = st.floats(-1e4, 1e4)
logit_rows = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(one_logit, min_size=n, max_size=n), min_size=1, max_size=4)
)


@pytest.mark.parametrize(
    ("logits", "expected", "digits"),
    [
        ([2, 1, 0.1], [0.6590, 0.2424, 0.0986], 4),
        ([3, 5.1, 2, 0.5, 0.1], [0.10340024, 0.84438392, 0.03803882, 0.00848761, 0.00568941], 8),
        ([0.1, 0, 0, 1], [0.1898, 0.1717, 0.1717, 0.4668], 4),
    ],
)
def test_softmax_of_the_lessons(logits: list[float], expected: list[float], digits: int) -> None:
    assert formulas.softmax(logits) == pytest.approx(expected, rel=0, abs=0.5 * 10.0**-digits)


def test_softmax_over_axis_0_sums_to_1_per_column() -> None:
    batch = [[3, 5.1, 2, 0.5, 0.1], [9, 0.1, 0.2, 1, 2]]
    columns = formulas.softmax(batch, axis=0)
    assert columns[0] == pytest.approx([0.0025, 0.9933, 0.8581, 0.3775, 0.1301], abs=5e-5)
    assert columns.sum(axis=0) == pytest.approx(np.ones(5))
    assert formulas.softmax(batch).sum(axis=1) == pytest.approx(np.ones(2))


@pytest.mark.parametrize(
    ("rows", "targets", "expected", "digits"),
    [
        ([[0.5, 2, 0.3]], [0], 1.84062, 5),
        ([[7, 0.2, 0.1]], [0], 0.0021, 4),
        ([[1, 3, 6]], [0], 5.0550, 4),
        ([[2.1, 1, 0.1], [0.1, 1, 2.1], [0.1, 3, 0.1]], TARGETS, 1.62416, 5),
        ([[0.1, 0.2, 0.9], [1.1, 0.1, 0.2], [0.2, 2.1, 0.1]], TARGETS, 0.4966353, 7),
        ([[0.8, 0.2, 0.3], [0.2, 0.3, 0.5], [0.2, 0.2, 0.5]], TARGETS, 1.2388996, 7),
        ([[0.1, 0, 0, 1]], [3], 0.7618934, 7),
    ],
)
def test_cross_entropy_of_the_lessons(
    rows: list[list[float]], targets: list[int], expected: float, digits: int
) -> None:
    half_a_digit = 0.5 * 10.0**-digits + 6e-8  # the lessons print float32
    for method in (formulas.cross_entropy, *TORCH_METHODS):
        reduced = formulas.reduce_losses(method(rows, targets), "mean")
        assert float(reduced) == pytest.approx(expected, rel=0, abs=half_a_digit)


@given(rows=logit_rows, data=st.data())
@settings(deadline=None, max_examples=50)
def test_numpy_equals_torch_and_the_objective(rows: list[list[float]], data: st.DataObject) -> None:
    num_classes = len(rows[0])
    targets = [data.draw(st.integers(0, num_classes - 1)) for _ in rows]
    losses = formulas.cross_entropy(rows, targets)
    for method in TORCH_METHODS:
        np.testing.assert_allclose(losses, method(rows, targets), rtol=1e-9, atol=1e-11)
    # what training and evaluation use, in their own float32
    logits = torch.tensor(rows, dtype=torch.float32)
    used = Multiclass().example_losses(logits, torch.tensor(targets))
    np.testing.assert_allclose(
        formulas.cross_entropy(logits.numpy(), targets), used.numpy(), rtol=2e-6, atol=2e-6
    )
    assert Multiclass().loss(logits, torch.tensor(targets)).item() == pytest.approx(
        formulas.reduce_losses(losses, "mean").item(), rel=1e-4, abs=1e-3
    )


@given(logits=st.lists(one_logit, min_size=1, max_size=5), target=st.sampled_from([0, 1]))
@settings(deadline=None, max_examples=50)
def test_binary_numpy_equals_torch_and_the_objective(logits: list[float], target: int) -> None:
    targets = [target] * len(logits)
    losses = formulas.binary_cross_entropy_with_logits(logits, targets)
    by_torch = formulas.torch_loss("BCEWithLogitsLoss", logits, targets)
    np.testing.assert_allclose(losses, by_torch, rtol=1e-9, atol=1e-11)
    # a yes/no network is a network of two classes whose no has the logit 0
    as_two_classes = formulas.cross_entropy([[0.0, z] for z in logits], targets)
    np.testing.assert_allclose(losses, as_two_classes, rtol=1e-9, atol=1e-11)
    used = Binary().example_losses(torch.tensor(logits)[:, None], torch.tensor(targets))
    np.testing.assert_allclose(losses, used.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("target", [0, 1])
def test_bce_with_logits_equals_sigmoid_and_bce_where_both_are_exact(target: int) -> None:
    logits, targets = np.linspace(-15, 15, 31), [target] * 31
    by_torch = partial(formulas.torch_loss, "Sigmoid + BCELoss")
    stable = formulas.binary_cross_entropy_with_logits(logits, targets)
    by_sigmoid = formulas.binary_cross_entropy(formulas.sigmoid(logits), targets)
    np.testing.assert_allclose(stable, by_sigmoid, rtol=1e-8)
    np.testing.assert_allclose(stable, by_torch(logits, targets), rtol=1e-8)
    # where sigmoid rounds to 0, BCELoss clamps log p
    assert by_torch([-800.0], [1]).tolist() == [100.0]
    assert formulas.binary_cross_entropy_with_logits([-800.0], [1]).tolist() == [800.0]


@pytest.mark.parametrize(
    ("row", "target", "loss", "naive"),
    [
        ([1e4, -1e4], 0, 0.0, math.nan),
        ([1e4, -1e4], 1, 2e4, math.inf),
        ([-1e4, -1e4], 1, math.log(2), math.nan),
        ([-1e4], 0, 0.0, math.nan),
        ([5.0], 0, 0.0, 0.0),
        ([0.0, -math.inf], 0, 0.0, 0.0),
        ([0.0, -math.inf], 1, math.inf, math.inf),
        ([1.0, 1.0, -math.inf], 1, math.log(2), math.log(2)),
    ],
)
def test_extreme_logits_are_right_and_the_note_says_how(
    row: list[float], target: int, loss: float, naive: float
) -> None:
    losses = formulas.cross_entropy([row], [target])
    assert losses == pytest.approx([loss])
    assert not np.signbit(losses).any()
    for method in TORCH_METHODS:
        assert method([row], [target]) == pytest.approx([loss])
    assert formulas.softmax(row).sum() == pytest.approx(1)
    explanation = explain_loss("logits", [row], [target])
    assert explanation["agree"]
    assert list(explanation["losses"].values()) == pytest.approx([loss] * 4)
    assert explanation["naive_loss"] == pytest.approx(naive, nan_ok=True)
    is_noted = "stable form is used" in " ".join(explanation["notes"])
    assert is_noted == (naive != pytest.approx(loss))
    json.dumps(to_json(explanation), allow_nan=False)
