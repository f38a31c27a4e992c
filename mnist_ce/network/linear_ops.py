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

    def weight_gradient(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Return Dᵀ · x: D [batch, outputs], x [batch, inputs] → [outputs, inputs]."""


class TorchProducts:
    """By `addmm` and `mm`."""

    def linear(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Products.linear`."""
        return torch.addmm(bias, images, weight.t())

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """See `Products.input_gradient`."""
        return torch.mm(gradient, weight)

    def weight_gradient(self, gradient: Tensor, images: Tensor) -> Tensor:
        """See `Products.weight_gradient`."""
        return torch.mm(gradient.t(), images)


class OneDnnProducts(TorchProducts):
    """By oneDNN's linear operator.

    It could apply the ReLU as well, but its ReLU turns NaN into 0, which would hide a diverged
    network from the loss.

    Raises:
        AttributeError: If this torch does not have the operator.
        RuntimeError: If the operator does not work here.
    """

    SMALL = 1 << 13  # weights; for fewer, torch's own gradients are faster
    WIDE = 6  # inputs per image; from here on the weights had better stay in their core's cache

    def __init__(self) -> None:
        self.operator = torch.ops.mkldnn._linear_pointwise.default

    def _product(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return left · rightᵀ + bias."""
        result: Tensor = self.operator(left, right, bias, "none", [], "")
        return result

    def linear(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Products.linear`.

        oneDNN gives each thread a share of the left factor's rows. With the weights there, a core
        reads those that it updated itself after the last batch, not half of them from the cache of
        the other. The price is turning the result over.
        """
        if images.shape[1] < self.WIDE * len(images):
            return self._product(images, weight, bias)
        result = torch.empty(len(images), len(weight))
        return torch.add(self._product(weight, images).t(), bias, out=result)

    def input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """See `Products.input_gradient`."""
        if weight.numel() < self.SMALL:
            return super().input_gradient(gradient, weight)
        return self._product(gradient, weight.t())

    def weight_gradient(self, gradient: Tensor, images: Tensor) -> Tensor:
        """See `Products.weight_gradient`."""
        if gradient.shape[1] * images.shape[1] < self.SMALL:
            return super().weight_gradient(gradient, images)
        return self._product(gradient.t(), images.t())


@lru_cache(maxsize=1)
def best_products() -> Products:
    """Return oneDNN's products if they work in this torch on this machine, else torch's own.

    The choice depends on the installation alone, never on a timing, so that equal runs stay equal.
    """
    try:
        products = OneDnnProducts()
        # As few images as make the layer wide, and more.
        if all(_agree(products, TorchProducts(), number) for number in (2, 64)):
            return products
    except (AttributeError, RuntimeError, TypeError):
        pass
    return TorchProducts()


def _agree(products: Products, reference: Products, num_images: int) -> bool:
    """Compare on small whole numbers, on which every order of summation gives the same."""
    outputs, inputs = 64, OneDnnProducts.SMALL // 64
    images = (torch.arange(float(num_images * inputs)) % 7).reshape(num_images, inputs)
    weight = (torch.arange(float(outputs * inputs)) % 5).reshape(outputs, inputs)
    bias = torch.arange(float(outputs))
    gradient = (torch.arange(float(num_images * outputs)) % 3).reshape(num_images, outputs)
    return (
        torch.equal(products.linear(images, weight, bias), reference.linear(images, weight, bias))
        and torch.equal(
            products.input_gradient(gradient, weight), reference.input_gradient(gradient, weight)
        )
        and torch.equal(
            products.weight_gradient(gradient, images), reference.weight_gradient(gradient, images)
        )
    )
