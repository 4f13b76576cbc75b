"""Which positions of a padded batch are real."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B, size)` bool, true before each utterance's length.

    Args:
        lengths: `(B,)` integer.
        size: padded length.
    """
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def attention_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B, 1, 1, size)` bool for `scaled_dot_product_attention`: true where a key may be attended to.

    The first key is always true, so that an empty utterance attends to something and stays finite.
    """
    mask = valid_mask(lengths.clamp(min=1), size)
    return mask[:, None, None, :]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean `(B, 1, D)` over the valid positions of `values (B, N, D)`, `mask (B, N)`; zero where there is none."""
    total = values.masked_fill(~mask[..., None], 0.0).sum(1, keepdim=True)
    return total / mask.sum(1).clamp(min=1)[:, None, None]
