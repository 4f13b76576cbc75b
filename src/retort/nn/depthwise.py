"""Depthwise convolution over time that is quick on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
