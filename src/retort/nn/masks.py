"""Masks of padded batches."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B, size)` bool, true for positions below each length.

    Args:
        lengths: `(B,)` integer.
        size: padded length.
    """
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def attention_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B, 1, 1, size)` bool for `scaled_dot_product_attention`: true for keys that may be attended to.

    The first key is always true, so that the result of an empty utterance is finite.
    """
    mask = valid_mask(lengths.clamp(min=1), size)
    return mask[:, None, None, :]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean `(B, 1, D)` of `values (B, N, D)` over the valid positions of `mask (B, N)`; zero if there are none."""
    total = values.masked_fill(~mask[..., None], 0.0).sum(1, keepdim=True)
    return total / mask.sum(1).clamp(min=1)[:, None, None]
