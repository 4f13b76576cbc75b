"""Sinusoidal tables, relative positions and rotary embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """`(N, dim)` float32: sine and cosine of each position at `dim / 2` wavelengths, interleaved.

    Source: Vaswani et al. 2017, section 3.5.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=positions.device) * (-math.log(10000.0) / dim))
    angles = positions.to(torch.float32)[:, None] * rates[None, :]
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def relative_table(size: int, dim: int, device: torch.device) -> Tensor:
    """`(2 * size - 1, dim)`: sinusoids of the distances size - 1 down to -(size - 1)."""
    return sinusoids(torch.arange(size - 1, -size, -1, device=device), dim)


def rotary_table(size: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(size, dim)` of the rotary angles of positions 0 to size - 1.

    Source: Su et al. 2021 (RoFormer), in the half-split layout.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(size, device=device, dtype=torch.float32)[:, None] * rates[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn `(..., T, dim)` queries or keys by the angles of `table`; the dtype stays."""
    cosines, sines = table
    first, second = vectors.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return vectors * cosines.to(vectors.dtype) + turned * sines.to(vectors.dtype)
