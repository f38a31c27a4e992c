"""Inference with any module: `predict_logits` does what the module's own call does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mnist_ce.network.model import MLP, predict_logits


class Doubled(MLP):
    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def doubled(where: str) -> MLP:
    model = MLP((40, 20))
    if where == "forward":
        original = model.forward
        model.forward = lambda images: 2 * original(images)  # type: ignore[method-assign]
    else:
        module = model if where == "model" else model.layers[-1]
        module.register_forward_hook(lambda module, arguments, logits: 2 * logits)
    return model


@pytest.mark.parametrize(
    "model",
    [
        MLP((40, 20)),
        Doubled((40, 20)),
        doubled("model"),
        doubled("layer"),
        doubled("forward"),
        nn.Sequential(nn.Linear(784, 40), nn.Dropout(), nn.Linear(40, 10)),
    ],
    ids=["MLP", "subclass", "hook", "hook of a layer", "own forward", "foreign"],
)
def test_logits_are_those_of_the_call_in_evaluation_mode(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2_003, 28, 28), generator=generator).to(torch.uint8)
    model.train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    logits = predict_logits(model, images, mean=0.1, std=0.5)
    assert [module.training for module in model.modules()] == modes
    inputs = (images.flatten(1) / 255 - 0.1) / 0.5
    with torch.no_grad():
        expected = model.eval()(inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
