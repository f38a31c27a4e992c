"""Distortions: what each does, and that (seed, step) decides everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_ce.config import AugmentConfig
from mnist_ce.data.augment import (
    apply_distortion,
    compose_coefficients,
    displacement_basis,
    draw_coefficients,
    resample,
)

STRENGTHS: dict[str, Any] = {
    "rotation_degrees": 10,
    "scale": 0.15,
    "shear": 0.2,
    "shift_pixels": 1.5,
    "elastic_pixels": 0.7,
}
FULL = AugmentConfig(**STRENGTHS, elastic_grid=6)


@pytest.fixture
def images() -> Tensor:
    blots = torch.zeros(12, 28, 28)  # blank at the edges, as digits are
    noise = torch.rand(12, 20, 20, generator=torch.Generator().manual_seed(5))
    blots[:, 4:24, 4:24] = (noise > 0.6) * noise
    return blots.view(12, 784)


def distort(
    images: Tensor, strengths: AugmentConfig, seed: int, step: int, out: Tensor | None = None
) -> Tensor:
    coefficients = draw_coefficients(strengths, len(images), seed=seed, step=step)
    return apply_distortion(images, coefficients, strengths.elastic_grid, out)


def resampled(picture: Tensor, coefficients: Tensor) -> Tensor:
    """Distort one `[28, 28]` picture by given coefficients, `[2, 3]`, not by random ones."""
    return resample(picture.view(1, 1, 28, 28), coefficients[None], elastic_grid=6)[0, 0]


def affine_coefficients(strengths: AugmentConfig, number: int, value: float) -> Tensor:
    """Coefficients `[2, 3]` where one random number has a given value, the others 0."""
    uniform = torch.zeros(6, 1)
    uniform[number] = value
    return compose_coefficients(strengths, uniform, torch.Generator())[0]


def test_seed_and_step_decide_everything(images: Tensor) -> None:
    torch.manual_seed(1)
    first = distort(images, FULL, seed=3, step=7)
    torch.manual_seed(2)  # the global generator has no say,
    state = torch.get_rng_state()
    assert torch.equal(first, distort(images, FULL, seed=3, step=7))
    assert torch.equal(torch.get_rng_state(), state)  # and is left alone
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert not torch.equal(first, distort(images, FULL, seed=seed, step=step))


@pytest.mark.parametrize("names", [*([name] for name in STRENGTHS), list(STRENGTHS)])
def test_each_strength_acts_and_values_stay_in_0_to_1(images: Tensor, names: list[str]) -> None:
    strengths = AugmentConfig(**{name: STRENGTHS[name] for name in names})
    assert strengths.distorts
    original = images.clone()
    distorted = distort(images, strengths, seed=0, step=0)
    assert torch.equal(images, original)
    square = distort(images.view(-1, 28, 28), strengths, seed=0, step=0)
    assert torch.equal(distorted, square.view(12, 784))
    assert distort(original, strengths, seed=0, step=0, out=original) is original
    assert torch.equal(distorted, original)
    assert (distorted.shape, distorted.dtype) == (images.shape, torch.float32)
    assert 0 <= distorted.min() < distorted.max() <= 1
    assert ((images - distorted).abs().mean(dim=1) > 0.001).all()
    weak = AugmentConfig(**{name: 1e-5 * STRENGTHS[name] for name in names})
    torch.testing.assert_close(distort(images, weak, seed=0, step=0), images, atol=1e-3, rtol=0)
    assert not AugmentConfig().distorts


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, 4)])
def test_a_shift_by_whole_pixels_rolls_the_image(images: Tensor, right: int, down: int) -> None:
    picture = images[0].view(28, 28)
    # source(p) = p - shift: what comes out at p lay to the left and above
    shifted = resampled(picture, torch.tensor([[1.0, 0, -right], [0, 1, -down]]))
    expected = picture.roll((down, right), dims=(0, 1))
    torch.testing.assert_close(shifted, expected, atol=1e-4, rtol=0)


def test_the_angle_turns_and_a_scale_above_one_enlarges(images: Tensor) -> None:
    picture = images[0].view(28, 28)
    for sign in (1, -1):
        quarter = affine_coefficients(AugmentConfig(rotation_degrees=90), 0, sign)
        turned = resampled(picture, quarter)
        torch.testing.assert_close(turned, torch.rot90(picture, sign), atol=1e-4, rtol=0)
    square = torch.zeros(28, 28)
    square[8:20, 8:20] = 1  # 12 × 12 around the centre
    stretched = resampled(square, affine_coefficients(AugmentConfig(scale=0.5), 1, 1))
    assert stretched[14].sum().item() == pytest.approx(18, abs=0.01)  # the width alone
    assert stretched[:, 14].sum().item() == pytest.approx(12, abs=0.01)


def test_shifts_have_the_stated_range() -> None:
    dot = torch.zeros(2000, 28, 28)
    dot[:, 14, 14] = 1
    moved = distort(dot, AugmentConfig(shift_pixels=3), seed=0, step=0)
    column = (moved.sum(1) * torch.arange(28)).sum(1) - 14
    assert 2.9 < column.abs().max() <= 3.001
    assert column.mean().abs() < 0.15
    assert column.std().item() == pytest.approx(3 / 3**0.5, rel=0.05)


def test_elastic_strength_is_in_pixels() -> None:
    strengths = AugmentConfig(elastic_pixels=0.7, elastic_grid=5)
    generator = torch.Generator().manual_seed(0)
    coefficients = compose_coefficients(strengths, torch.zeros(6, 4000), generator)
    bumps = displacement_basis(5, 25, torch.device("cpu"))[3:] * 13.5  # in pixels
    displacement = (coefficients[:, 0, 3:] @ bumps).view(-1, 28, 28)
    assert displacement[:, 0, 0].std().item() == pytest.approx(0.7, rel=0.05)
    assert 0.4 < displacement[:, 3:25, 3:25].std().item() < 0.7
