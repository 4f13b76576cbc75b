"""Sinusoidal tables, relative positions and rotary embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal `positions (...)` as `(..., dim)` float32: sine and cosine at `dim / 2` wavelengths, interleaved.

    Source: Vaswani et al. 2017, section 3.5.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=positions.device) * (-math.log(10000.0) / dim))
    angles = positions.to(torch.float32)[..., None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def relative_table(size: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids `(2 * size - 1, dim)` of the distances size - 1 down to -(size - 1)."""
    return sinusoids(torch.arange(size - 1, -size, -1, device=device), dim)


def compact_table(size: int, dim: int, device: torch.device) -> Tensor:
    """Cosines and sines `(2 * size - 1, dim)` float32 of the distances -(size - 1) up to size - 1, key minus query.

    A distance d is mapped to an angle in (-pi / 2, pi / 2), `atan(2 pi / dim * sign(d) * c * log(1 + |d| / c))`
    with c the root of `dim`; the table has cosine and sine of 1 to dim / 2 times this angle, and the last column is
    1. The resolution is high near zero. Source: the authors' implementation of Zipformer (Yao et al. 2023), whose
    paper does not describe it.

    Args:
        dim: even.
    """
    distances = torch.arange(1 - size, size, device=device, dtype=torch.float32)
    compression = math.sqrt(dim)
    compressed = distances.sign() * compression * (distances.abs() / compression).log1p()
    angles = (compressed * (2.0 * math.pi / dim)).atan()
    angles = angles[:, None] * torch.arange(1, dim // 2 + 1, device=device)
    table = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(1)
    table[:, -1] = 1.0
    return table


def rotary_angles(size: int, dim: int, device: torch.device) -> Tensor:
    """Rotary angles `(size, dim)` float64 of positions 0 to size - 1.

    In float64, attention depends on distances only, wherever position 0 is. Source: Su et al. 2021 (RoFormer), in the
    half-split layout.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float64) * (-math.log(10000.0) / dim))
    angles = torch.arange(size, device=device, dtype=torch.float64)[:, None] * rates[None, :]
    return torch.cat((angles, angles), dim=-1)


def rotary_table(size: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(size, dim)` float64 of :func:`rotary_angles`."""
    angles = rotary_angles(size, dim, device)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `(..., T, dim)` queries or keys by the angles of `table`; the dtype is kept."""
    cosines, sines = table
    first, second = vectors.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return vectors * cosines.to(vectors.dtype) + turned * sines.to(vectors.dtype)
