"""Random distortions of a batch of digits: one small matrix product, one resampling.

Every output pixel p looks up the input at a displaced place. In pixels from the image's centre:

    source(p) = R(angle) · Shear · diag(1 / scale) · p + shift + elastic(p)

Each term is a linear combination of fixed functions of p: x, y, 1 and one smooth bump per elastic
control point. So a batch of displacement fields is one product of its random coefficients with a
constant basis, [batch · 2, 3 + n²] @ [3 + n², 784], and one bilinear `grid_sample` does the rest.
The coefficients are drawn on the CPU whatever the device, so that a batch's distortion is a
function of (seed, step) alone.

Simard, Steinkraus and Platt (2003), "Best practices for convolutional neural networks applied to
visual document analysis", and Cireşan et al. (2010), "Deep, big, simple neural nets for handwritten
digit recognition", smooth a random field with a Gaussian; control points are as smooth for less.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from mnist_ce.config import AugmentConfig

_SIDE = 28
_CENTRE = (_SIDE - 1) / 2  # in pixels: halfway between the centres of the first and last pixel
_NUM_AFFINE = 3  # basis functions x, y, 1
_MASK64 = (1 << 64) - 1


def generator_seed(seed: int, step: int) -> int:
    """Mix a run's seed and a step into a generator's seed of 32 bits, all that PyTorch's takes.

    By the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) neighbours have unrelated streams.
    """
    state = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (state ^ (state >> 31)) >> 32


def draw_coefficients(strengths: AugmentConfig, num_images: int, *, seed: int, step: int) -> Tensor:
    """Draw the distortions of a batch, float32 [batch, 2, 3 + n²], on the CPU.

    Rotation (counterclockwise), scale, shear and shift are uniform in ± their strength; the elastic
    control points' displacements are normal.
    """
    generator = torch.Generator().manual_seed(generator_seed(seed, step))
    # In [-1, 1), drawn whichever strengths are on: switching one leaves the others as they were.
    uniform = torch.rand(6, num_images, generator=generator).mul_(2).sub_(1)
    return compose_coefficients(strengths, uniform, generator)


def apply_distortion(
    images: Tensor, coefficients: Tensor, elastic_grid: int, out: Tensor | None = None
) -> Tensor:
    """Distort images, float32 [n, 784] or [n, 28, 28] in [0, 1], by their rows of coefficients.

    The result is written to `out` if given, which may be the images themselves.
    """
    distorted = resample(images.view(-1, 1, _SIDE, _SIDE), coefficients, elastic_grid)
    # Rounding can carry an interpolated value a hair past 1.
    return torch.clamp(distorted.view(images.shape), 0.0, 1.0, out=out)


def compose_coefficients(
    strengths: AugmentConfig, uniform: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the coefficients [batch, 2, 3 + n²] of source(p); the rows are x and y, in pixels.

    `uniform` is [6, batch] in [-1, 1): angle, two scales, slant and two shifts.
    """
    batch_size = uniform.shape[1]
    num_points = strengths.elastic_grid**2 if strengths.elastic_pixels else 0
    coefficients = torch.empty(batch_size, 2, _NUM_AFFINE + num_points)
    if num_points:  # the affine columns too: one draw of contiguous numbers is ten times as fast
        coefficients.normal_(0, strengths.elastic_pixels, generator=generator)
    angle = uniform[0] * math.radians(strengths.rotation_degrees)
    cos, sin = angle.cos(), angle.sin()
    inverse_scale = 1 / (1 + strengths.scale * uniform[1:3])
    slant = strengths.shear * uniform[3]
    # R(angle) · [[1, slant], [0, 1]] · diag(inverse_scale)
    coefficients[:, 0, 0] = cos * inverse_scale[0]
    coefficients[:, 0, 1] = (cos * slant - sin) * inverse_scale[1]
    coefficients[:, 1, 0] = sin * inverse_scale[0]
    coefficients[:, 1, 1] = (sin * slant + cos) * inverse_scale[1]
    coefficients[:, :, 2] = strengths.shift_pixels * uniform[4:6].T
    return coefficients


@lru_cache(maxsize=8)
def displacement_basis(elastic_grid: int, num_points: int, device: torch.device) -> Tensor:
    """Return the fixed functions of p: [3 + num_points, 784], in `grid_sample`'s unit (-1 to 1)."""
    axis = torch.linspace(-1, 1, _SIDE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    # A coefficient of 1 on x or y is the identity; the others are in pixels.
    affine = torch.stack([x, y, torch.full_like(x, 1 / _CENTRE)])
    rows = [affine.view(_NUM_AFFINE, -1)]
    if num_points:
        points = torch.eye(num_points, dtype=torch.float64)
        points = points.view(num_points, 1, elastic_grid, elastic_grid)
        bumps = functional.interpolate(points, (_SIDE, _SIDE), mode="bicubic", align_corners=True)
        rows.append(bumps.view(num_points, -1) / _CENTRE)
    return torch.cat(rows).to(device=device, dtype=torch.float32)


def resample(images: Tensor, coefficients: Tensor, elastic_grid: int) -> Tensor:
    """Look up images, [batch, 1, 28, 28], at source(p), bilinearly; outside they are 0."""
    num_points = coefficients.shape[2] - _NUM_AFFINE
    basis = displacement_basis(elastic_grid, num_points, images.device)
    # [batch · 2, 3 + n²] @ [3 + n², 784]; grid_sample reads two planes as fast as pairs.
    source = coefficients.view(-1, coefficients.shape[2]) @ basis
    grid = source.view(-1, 2, _SIDE, _SIDE).permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, align_corners=True)  # bilinear, zeros outside
