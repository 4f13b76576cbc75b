"""Padded batches and their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(sequences: Sequence[Tensor], step: int = 1, value: int = 0) -> Tensor:
    """Sequences `(N, ...)` as one tensor `(B, T, ...)`, padded with `value`; T is a multiple of `step`."""
    joined = pad_sequence(list(sequences), batch_first=True, padding_value=value)
    return F.pad(joined, (0, 0) * (joined.dim() - 2) + (0, -joined.shape[1] % step), value=value)


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
