"""Dropout and depthwise convolution that are fast on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.chunks import Chunks, chunk_windows, join_chunks

_LEVELS = 2**16


class Dropout(nn.Module):
    """Dropout with the probability rounded to 1 / 65,536.

    On a CPU torch draws one random number per element, which takes a seventh of a small Conformer's training step;
    here one 64-bit draw serves four elements. On other devices it is torch's dropout.

    Args:
        p: probability that an element is zero, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1), not {p}")
        self.p = p

    def forward(self, hidden: Tensor) -> Tensor:
        """In training, zero elements of `hidden` (any shape) and scale the others."""
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped == 0:
            return hidden
        if hidden.device.type != "cpu":
            return F.dropout(hidden, self.p)
        draws = torch.empty(hidden.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        levels = draws.view(torch.int16)[: hidden.numel()].view(hidden.shape)
        # Written as numbers at once: converting booleans to bfloat16 takes five times as long as the comparison.
        mask = torch.empty(hidden.shape, dtype=hidden.dtype)
        torch.ge(levels, dropped - _LEVELS // 2, out=mask)
        return hidden * mask.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Depthwise(nn.Conv1d):
    """Depthwise convolution over time that keeps the number of frames.

    Weights and results are those of `torch.nn.Conv1d` with `groups` and padding of half the kernel. On a CPU it is
    computed as a convolution of an image of width one in channels-last layout, as that of `(B, T, dim)`: this
    avoids copies of the input and is two to four times as fast, forward and backward. On other devices it is
    `Conv1d`.

    Args:
        dim: number of channels.
        kernel: number of frames, odd.
        bias: add a bias per channel.

    Raises:
        ValueError: `kernel` is even.
    """

    def __init__(self, dim: int, kernel: int, bias: bool = True) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel}")
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, hidden: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)` to `(B, T, dim)`, with zero padding, also after each chunk if there are chunks."""
        if chunks is not None:
            windows = chunk_windows(hidden, self.kernel_size[0] // 2, chunks, self)
            image, weight = windows.unsqueeze(3), self.weight.unsqueeze(3)
            return join_chunks(F.conv2d(image, weight, self.bias, groups=self.groups).squeeze(3), hidden)
        channels = hidden.transpose(1, 2)
        if hidden.device.type != "cpu":
            return super().forward(channels).transpose(1, 2)
        image, weight = channels.unsqueeze(3), self.weight.unsqueeze(3)
        padding = (self.kernel_size[0] // 2, 0)
        convolved = F.conv2d(image, weight, self.bias, padding=padding, groups=self.groups)
        return convolved.squeeze(3).transpose(1, 2)
