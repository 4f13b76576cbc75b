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
        mask = (levels >= dropped - _LEVELS // 2).to(hidden.dtype)
        return hidden * mask.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Depthwise(nn.Conv1d):
    """Convolution over time, channel by channel, of as many frames as it is given.

    Weights and results are those of `torch.nn.Conv1d` with `groups` and half of the kernel as padding. On a CPU it is
    done as an image one pixel wide, whose channels lie together, as those of `(B, T, dim)` do: no copy of the
    input, and two to four times as fast forward and backward. Elsewhere it is `Conv1d`'s own.

    Args:
        dim: channels.
        kernel: frames, odd.
        bias: add one number a channel.

    Raises:
        ValueError: `kernel` is even.
    """

    def __init__(self, dim: int, kernel: int, bias: bool = True) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel}")
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden (B, T, dim)` to `(B, T, dim)`; before the first frame and behind the last there are zeros."""
        channels = hidden.transpose(1, 2)
        if hidden.device.type != "cpu":
            return super().forward(channels).transpose(1, 2)
        image, weight = channels.unsqueeze(3), self.weight.unsqueeze(3)
        padding = (self.kernel_size[0] // 2, 0)
        convolved = F.conv2d(image, weight, self.bias, padding=padding, groups=self.groups)
        return convolved.squeeze(3).transpose(1, 2)
