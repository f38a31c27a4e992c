"""The matrix products of a step, by oneDNN where torch offers it, else by torch's own `mm`.

`torch.mm` calls MKL, which leaves much of an AMD processor unused; oneDNN does not. Its operator is
the one that `torch.compile` emits for a Linear layer, x · wᵀ + b. It takes transposed views, so
that all three products of a layer can be written with it. All is float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["OneDnnProducts", "Products", "TorchProducts", "best_products"]


class Products(Protocol):
    """The three products of a Linear layer with weight w [outputs, inputs]."""

    def linear(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x · wᵀ + b: [batch, inputs] → [batch, outputs]."""

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Return D · w: the output's gradient [batch, outputs] → the input's [batch, inputs]."""

    def accumulate(self, momentum: Tensor, kept: float, gradient: Tensor, images: Tensor) -> None:
        """Do v ← kept · v + Dᵀ · x in place: v [outputs, inputs], D [batch, outputs]."""


class TorchProducts:
    """By `addmm` and `mm`."""

    def linear(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Products.linear`."""
        return torch.addmm(bias, images, weight.t())

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """See `Products.input_gradient`."""
        return torch.mm(gradient, weight)

    def accumulate(self, momentum: Tensor, kept: float, gradient: Tensor, images: Tensor) -> None:
        """See `Products.accumulate`: one call, without a buffer for the gradient."""
        momentum.addmm_(gradient.t(), images, beta=kept)


class OneDnnProducts(TorchProducts):
    """By oneDNN's linear operator.

    It could apply the ReLU as well, but its ReLU turns NaN into 0, which would hide a diverged
    network from the loss.

    Raises:
        AttributeError: If this torch does not have the operator.
        RuntimeError: If the operator does not work here.
    """

    # Below this many weights the one call of `addmm_` beats a product and an addition.
    SMALL = 1 << 16

    def __init__(self) -> None:
        self.operator = torch.ops.mkldnn._linear_pointwise.default

    def _product(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return left · rightᵀ + bias."""
        result: Tensor = self.operator(left, right, bias, "none", [], "")
        return result

    def linear(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Products.linear`."""
        return self._product(images, weight, bias)

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """See `Products.input_gradient`."""
        return self._product(gradient, weight.t())

    def accumulate(self, momentum: Tensor, kept: float, gradient: Tensor, images: Tensor) -> None:
        """See `Products.accumulate`: the operator cannot scale what it adds to, so it is two."""
        if momentum.numel() < self.SMALL:
            super().accumulate(momentum, kept, gradient, images)
        else:
            weight_gradient = self._product(gradient.t(), images.t())
            torch.add(weight_gradient, momentum, alpha=kept, out=momentum)


@lru_cache(maxsize=1)
def best_products() -> Products:
    """Return oneDNN's products if they work in this torch on this machine, else torch's own.

    The choice depends on the installation alone, never on a timing, so that equal runs stay equal.
    """
    try:
        products = OneDnnProducts()
        if _agree(products, TorchProducts()):
            return products
    except (AttributeError, RuntimeError, TypeError):
        pass
    return TorchProducts()


def _agree(products: Products, reference: Products) -> bool:
    """Compare on small whole numbers, on which every order of summation gives the same."""
    images = torch.arange(6.0).reshape(2, 3)
    weight, bias = torch.arange(12.0).reshape(4, 3), torch.arange(4.0)
    gradient = torch.arange(8.0).reshape(2, 4)
    one, other = torch.ones(4, 3), torch.ones(4, 3)
    products.accumulate(one, 0.5, gradient, images)
    reference.accumulate(other, 0.5, gradient, images)
    return (
        torch.equal(products.linear(images, weight, bias), reference.linear(images, weight, bias))
        and torch.equal(
            products.input_gradient(gradient, weight), reference.input_gradient(gradient, weight)
        )
        and torch.equal(one, other)
    )
