"""The formulas against the lessons' numbers, torch and exact arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ce.explain import reference_losses as formulas
from mnist_ce.explain.loss_table import loss_table
from mnist_ce.network.objective import Binary, Multiclass
from mnist_ce.system.errors import UsageError

SURE_AND_RIGHT = [[0.1, 1, 2.1], [2, 1, 0.1], [0.1, 3, 0.1]]
TWO_WRONG = [[2.1, 1, 0.1], [0.1, 1, 2.1], [0.1, 3, 0.1]]
TARGETS = [2, 0, 1]
TORCH_METHODS = (formulas.log_softmax_nll_loss, formulas.cross_entropy_loss)

logit_rows = st.integers(1, 6).flatmap(
    lambda num_classes: st.lists(
        st.lists(st.floats(-1e4, 1e4), min_size=num_classes, max_size=num_classes),
        min_size=1,
        max_size=4,
    )
)


def rounded(values: object, digits: int) -> object:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


@pytest.mark.parametrize(
    ("logits", "expected", "digits"),
    [
        ([2, 1, 0.1], [0.6590, 0.2424, 0.0986], 4),
        ([3, 5.1, 2, 0.5, 0.1], [0.10340024, 0.84438392, 0.03803882, 0.00848761, 0.00568941], 8),
        ([0.1, 0, 0, 1], [0.1898, 0.1717, 0.1717, 0.4668], 4),
    ],
)
def test_softmax_of_the_lessons(logits: list[float], expected: list[float], digits: int) -> None:
    assert rounded(formulas.softmax(logits), digits) == expected
    by_torch = torch.tensor(logits, dtype=torch.float64).softmax(0)
    assert rounded(by_torch, digits) == expected


def test_softmax_over_axis_0_sums_to_1_per_column() -> None:
    batch = [[3, 5.1, 2, 0.5, 0.1], [9, 0.1, 0.2, 1, 2]]
    columns = formulas.softmax(batch, axis=0)
    assert rounded(columns, 4) == [
        [0.0025, 0.9933, 0.8581, 0.3775, 0.1301],
        [0.9975, 0.0067, 0.1419, 0.6225, 0.8699],
    ]
    assert columns.sum(axis=0) == pytest.approx(np.ones(5))
    assert columns.sum(axis=1) != pytest.approx(np.ones(2), abs=0.1)  # the common mistake
    assert formulas.softmax(batch).sum(axis=1) == pytest.approx(np.ones(2))


@pytest.mark.parametrize(
    ("probabilities", "expected"), [([0.7, 0.2, 0.1], 0.35667494), ([0.1, 0.3, 0.6], 2.30258509)]
)
def test_one_hot_cross_entropy_of_the_lessons(probabilities: list[float], expected: float) -> None:
    losses = formulas.cross_entropy_of_probabilities([probabilities], formulas.one_hot([0], 3))
    assert rounded(losses, 8) == [expected]


@pytest.mark.parametrize(
    ("rows", "targets", "reduction", "expected", "digits"),
    [
        ([[2, 1, 0.1]], [0], "mean", 0.41703, 5),
        ([[0.5, 2, 0.3]], [0], "mean", 1.84062, 5),
        ([[7, 0.2, 0.1]], [0], "mean", 0.0021, 4),
        ([[1, 3, 6]], [0], "mean", 5.0550, 4),
        (SURE_AND_RIGHT, TARGETS, "mean", 0.30182, 5),
        (SURE_AND_RIGHT, TARGETS, "sum", 0.90547, 5),
        (SURE_AND_RIGHT, TARGETS, "none", [0.3840, 0.4170, 0.1044], 4),
        (TWO_WRONG, TARGETS, "mean", 1.62416, 5),
        (TWO_WRONG, TARGETS, "sum", 4.87248, 5),
        (TWO_WRONG, TARGETS, "none", [2.3840, 2.3840, 0.1044], 4),
        ([[0.1, 0.2, 0.9], [1.1, 0.1, 0.2], [0.2, 2.1, 0.1]], TARGETS, "mean", 0.4966353, 7),
        ([[0.8, 0.2, 0.3], [0.2, 0.3, 0.5], [0.2, 0.2, 0.5]], TARGETS, "mean", 1.2388996, 7),
        ([[0.1, 0, 0, 1]], [3], "mean", 0.7618934, 7),
    ],
)
def test_cross_entropy_of_the_lessons(
    rows: list[list[float]], targets: list[int], reduction: str, expected: object, digits: int
) -> None:
    # The lessons print float32, whose neighbours lie 6e-8 apart at these sizes.
    half_a_digit = 0.5 * 10.0**-digits + 6e-8
    for method in (formulas.cross_entropy, *TORCH_METHODS):
        reduced = formulas.reduce_losses(method(rows, targets), reduction)
        assert reduced == pytest.approx(np.array(expected), rel=0, abs=half_a_digit)


def test_the_likeliest_class_is_that_of_the_largest_logit() -> None:
    for rows, expected in ((SURE_AND_RIGHT, TARGETS), (TWO_WRONG, [0, 2, 1])):
        assert np.argmax(rows, axis=1).tolist() == expected
        assert formulas.softmax(rows).argmax(axis=1).tolist() == expected
        assert Multiclass().predictions(torch.tensor(rows)).tolist() == expected


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


@given(
    logits=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5), target=st.sampled_from([0, 1])
)
@settings(deadline=None, max_examples=50)
def test_binary_numpy_equals_torch_and_the_objective(logits: list[float], target: int) -> None:
    targets = [target] * len(logits)
    losses = formulas.binary_cross_entropy_with_logits(logits, targets)
    by_torch = formulas.bce_with_logits_loss(logits, targets)
    np.testing.assert_allclose(losses, by_torch, rtol=1e-9, atol=1e-11)
    # a yes/no network is a network of two classes whose no has the logit 0
    as_two_classes = formulas.cross_entropy([[0.0, z] for z in logits], targets)
    np.testing.assert_allclose(losses, as_two_classes, rtol=1e-9, atol=1e-11)
    used = Binary().example_losses(torch.tensor(logits)[:, None], torch.tensor(targets))
    np.testing.assert_allclose(losses, used.numpy(), rtol=1e-5, atol=1e-4)


def test_bce_with_logits_equals_sigmoid_and_bce_where_both_can_be_had() -> None:
    logits = np.linspace(-15, 15, 31)
    for targets in ([0] * 31, [1] * 31):
        stable = formulas.binary_cross_entropy_with_logits(logits, targets)
        by_sigmoid = formulas.binary_cross_entropy(formulas.sigmoid(logits), targets)
        np.testing.assert_allclose(stable, by_sigmoid, rtol=1e-8)
        np.testing.assert_allclose(stable, formulas.sigmoid_bce_loss(logits, targets), rtol=1e-8)


def test_bce_on_a_rounded_sigmoid_loses_the_loss() -> None:
    assert formulas.bce_with_logits_loss([-800.0], [1]).tolist() == [800.0]
    assert formulas.sigmoid_bce_loss([-800.0], [1]).tolist() == [100.0]  # BCELoss clamps log p
    assert formulas.binary_cross_entropy(formulas.sigmoid([-800.0]), [1]).tolist() == [np.inf]
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
    table = loss_table("logits", [row], [target])
    assert table.agree
    assert all(float(value) == pytest.approx(loss) for value in table.losses.values())
    assert table.naive_losses == pytest.approx([naive], nan_ok=True)
    assert ("stable form is used" in " ".join(table.notes)) == (naive != pytest.approx(loss))
    json.dumps(table.to_dict(), allow_nan=False)


def test_the_naive_formula_overflows_where_the_stable_one_does_not() -> None:
    assert np.isnan(formulas.naive_softmax([1e4, 0.0])).any()
    assert formulas.softmax([1e4, 0.0]).tolist() == [1.0, 0.0]
    plain = [2.0, 1.0, 0.1]
    assert formulas.naive_softmax(plain) == pytest.approx(formulas.softmax(plain))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([3], "target 3 is not a class: the classes are 0 to 2"),
        ([-100], "target -100 is not a class"),  # torch would silently leave the row out
        ([0, 1], "1 row needs as many targets, not 2"),
        ([], "1 row needs as many targets, not 0"),
    ],
)
def test_targets_that_are_no_classes(targets: Sequence[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        formulas.cross_entropy([[2, 1, 0.1]], targets)
    with pytest.raises(UsageError, match="is not one of mean, sum, none"):
        formulas.reduce_losses(np.zeros(1), "average")
