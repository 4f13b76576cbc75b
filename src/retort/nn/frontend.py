"""From filter banks to vectors at a lower rate."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.masks import valid_mask

Size = TypeVar("Size", int, Tensor)


class Conv2dFrontend(nn.Module):
    """Unpadded 3 x 3 convolutions of stride 2 with ReLU, flattened and projected (CIF-HKD, front end).

    Args:
        bins: filter banks a frame.
        channels: of every convolution.
        layers: 1 or 2; each maps T frames to floor((T - 1) / 2).
        dim: of the output.
    """

    def __init__(self, bins: int, channels: int, layers: int, dim: int) -> None:
        super().__init__()
        sizes = [1] + [channels] * layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2) for before, after in pairwise(sizes)
        )
        self.projection = nn.Linear(channels * self._halve(bins), dim)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, T', dim)` and the lengths with it. Padded frames are read as zeros."""
        features = features.masked_fill(~valid_mask(lengths, features.shape[1])[..., None], 0.0)
        shortest = 2 ** (len(self.convolutions) + 1) - 1
        if features.shape[1] < shortest:
            features = F.pad(features, (0, 0, 0, shortest - features.shape[1]))
        hidden = features[:, None]
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden))
        hidden = self.projection(hidden.transpose(1, 2).flatten(2))
        return hidden, self._halve(lengths).clamp(min=0)

    def _halve(self, size: Size) -> Size:
        for _ in self.convolutions:
            size = (size - 1) // 2
        return size
