"""The kernels of a Linear layer equal their formulas, with and without private operators."""

from __future__ import annotations

import pytest
import torch

from mnist_ce.network import linear_ops


@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize("num_images", [20, 64])
def test_products_equal_their_formulas(
    is_private: bool, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_private:
        assert linear_ops.onednn_product() is not None
    else:
        monkeypatch.setattr(linear_ops, "onednn_product", lambda: None)
    generator = torch.Generator().manual_seed(0)
    images, gradient = (torch.randn(num_images, n, generator=generator) for n in (300, 260))
    weight = torch.randn(260, 300, generator=generator)  # large enough for every path
    bias = weight[:, 0].clone()
    for found, expected in (
        (
            linear_ops.linear(images, weight, bias),
            images.double() @ weight.double().T + bias.double(),
        ),
        (linear_ops.input_gradient(gradient, weight), gradient.double() @ weight.double()),
        (linear_ops.weight_gradient(gradient, images), gradient.double().T @ images.double()),
    ):
        assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("is_private", [True, False])
def test_relu_gradient_is_that_of_autograd(
    is_private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear_ops.relu_gradient.cache_clear()
    if not is_private:
        monkeypatch.setattr(torch.ops.aten, "threshold_backward", None)
    kernel = linear_ops.relu_gradient()
    linear_ops.relu_gradient.cache_clear()
    inputs = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).requires_grad_()
    above = torch.randn(7, 33, generator=torch.Generator().manual_seed(1))
    outputs = torch.relu(inputs)
    (expected,) = torch.autograd.grad(outputs, inputs, above)
    kernel(above, outputs.detach())
    assert torch.equal(above, expected)
