"""Dropout whose mask is cheap on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Module):
    """Dropout with the probability rounded to 1 / 65,536.

    On a CPU torch draws one random number an element, a seventh of a small Conformer's training step; here one
    64-bit draw serves four elements. Elsewhere this is torch's own.

    Args:
        p: probability that an element is zero, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1), not {p}")
        self.p = p

    def forward(self, hidden: Tensor) -> Tensor:
        """Zero elements of `hidden` (any shape) and scale the others, while training."""
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped == 0:
            return hidden
        if hidden.device.type != "cpu":
            return F.dropout(hidden, self.p)
        draws = torch.empty(hidden.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        levels = draws.view(torch.int16)[: hidden.numel()].view(hidden.shape)
        kept = (levels >= dropped - _LEVELS // 2).to(hidden.dtype)
        return hidden * kept.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"
