"""What a decoder reads of the tokens before while it trains."""

from __future__ import annotations

import torch
from torch import Tensor

from retort.text.tokenizers import UNKNOWN


def forgotten(tokens: Tensor, share: float) -> Tensor:
    """`tokens (B, U)` int64 with this share of them, drawn one by one, unknown."""
    if share == 0.0:
        return tokens
    return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < share, UNKNOWN)
