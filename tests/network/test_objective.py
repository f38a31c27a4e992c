"""An objective's own gradient is autograd's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from mnist_ce.network.objective import Binary, Multiclass, Objective


@dataclass(frozen=True)
class SquaredError(Multiclass):
    """An objective that leaves its gradient to autograd."""

    loss_and_gradient = Objective.loss_and_gradient

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).square().mean()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    "objective",
    [
        Multiclass(),
        Multiclass(label_smoothing=0.1),
        Multiclass(label_smoothing=1.0),
        Binary(),
        Binary(positive_weight=3.0),
        SquaredError(),
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_autograd(objective: Objective, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    num_outputs = 1 if isinstance(objective, Binary) else 10
    logits = scale * torch.randn(7, num_outputs, generator=generator)
    labels = torch.randint(max(num_outputs, 2), (7,), generator=generator)
    leaf = logits.double().requires_grad_()
    expected_loss = objective.loss(leaf, labels) * len(labels)  # the sum
    (expected,) = torch.autograd.grad(expected_loss, leaf)
    before = logits.clone()
    with torch.inference_mode():
        gradient = torch.empty_like(logits)
        loss = objective.loss_and_gradient(logits, labels + 0, gradient)
    assert torch.equal(logits, before)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_logit_of_minus_infinity_costs_nothing_where_it_is_not_the_answer() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    gradient = torch.empty_like(logits)
    loss = Multiclass().loss_and_gradient(logits, torch.tensor([0]), gradient)
    assert loss == pytest.approx(0.6931472)
    assert gradient.tolist() == [[-0.5, 0.0, 0.5]]
