"""The formulas against the lessons' numbers, torch and exact arithmetic."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ce.explain import loss as formulas
from mnist_ce.explain.loss import explain_loss, to_json
from mnist_ce.network.objective import Binary, Multiclass

TARGETS = [2, 0, 1]

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
    p = formulas.softmax(np.array(logits))
    assert p == pytest.approx(expected, rel=0, abs=0.5 * 10.0**-digits)


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
    for loss in explain_loss("logits", rows, targets)["losses"].values():
        assert loss == pytest.approx(expected, rel=0, abs=half_a_digit)


@given(rows=logit_rows, data=st.data())
@settings(deadline=None, max_examples=50)
def test_numpy_equals_torch_and_the_objective(rows: list[list[float]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, len(rows[0]) - 1)) for _ in rows]
    explained = explain_loss("logits", rows, targets, reduction="none")
    assert explained["agree"]
    # what training and evaluation use, in their own float32
    logits, labels = torch.tensor(rows, dtype=torch.float32), torch.tensor(targets)
    used = Multiclass().example_losses(logits, labels)
    of_float32 = explain_loss("logits", logits.numpy(), targets, reduction="none")["loss"]
    np.testing.assert_allclose(of_float32, used.numpy(), rtol=2e-6, atol=2e-6)
    mean = Multiclass().loss(logits, labels).item()
    assert mean == pytest.approx(np.mean(explained["loss"]), rel=1e-4, abs=1e-3)


@given(logits=st.lists(one_logit, min_size=1, max_size=5), target=st.sampled_from([0, 1]))
@settings(deadline=None, max_examples=50)
def test_binary_numpy_equals_torch_and_the_objective(logits: list[float], target: int) -> None:
    rows, targets = [[z] for z in logits], [target] * len(logits)
    losses = explain_loss("binary", rows, targets, reduction="none")["losses"]
    stable, by_torch = losses["stable_formula"], losses["bce_with_logits_loss"]
    np.testing.assert_allclose(stable, by_torch, rtol=1e-9, atol=1e-11)
    # a yes/no network is a network of two classes whose no has the logit 0
    as_two = explain_loss("logits", [[0.0, z] for z in logits], targets, reduction="none")["loss"]
    np.testing.assert_allclose(stable, as_two, rtol=1e-9, atol=1e-11)
    used = Binary().example_losses(torch.tensor(rows), torch.tensor(targets))
    np.testing.assert_allclose(stable, used.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("target", [0, 1])
def test_the_methods_of_yes_and_no_agree_where_the_sigmoid_is_exact(target: int) -> None:
    rows = np.linspace(-15, 15, 31)[:, None]
    losses = explain_loss("binary", rows, [target] * 31, reduction="none")["losses"].values()
    for one in losses:
        np.testing.assert_allclose(one, next(iter(losses)), rtol=1e-8)
    # where sigmoid rounds to 0, BCELoss clamps log p
    rounded = explain_loss("binary", [[-800.0]], [1])["losses"]
    assert (rounded["sigmoid_bce_loss"], rounded["stable_formula"]) == (100, 800)


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
    explanation = explain_loss("logits", [row], [target])
    assert explanation["agree"]
    losses = list(explanation["losses"].values())
    assert losses == pytest.approx([loss] * 4)
    assert not np.signbit(losses).any()
    assert sum(explanation["rows"][0]["probabilities"]) == pytest.approx(1)
    assert explanation["naive_loss"] == pytest.approx(naive, nan_ok=True)
    is_noted = "stable form is used" in " ".join(explanation["notes"])
    assert is_noted == (naive != pytest.approx(loss))
    json.dumps(to_json(explanation), allow_nan=False)
