"""From filter banks to vectors, at the same rate or a lower one."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.student import FrontendConfig
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

    @property
    def subsampling(self) -> int:
        """Feature frames in one frame of the output."""
        return int(2 ** len(self.convolutions))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give."""
        return self._halve(lengths).clamp(min=0)

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
        return hidden, self.output_lengths(lengths)

    def _halve(self, size: Size) -> Size:
        for _ in self.convolutions:
            size = (size - 1) // 2
        return size


class FramesFrontend(nn.Module):
    """One convolution over time with ReLU and LayerNorm: an output frame hears its own frames and one to each side.

    Output frame t is of the feature frames from `stride` x t on; the last may have fewer. At stride 1 it is the
    first layer of a TDNN (Peddinti et al. 2015), at stride 3 one at the rate of Kaldi's chain models.

    Args:
        bins: filter banks a frame.
        stride: feature frames to one of the output.
        dim: of the output.
    """

    def __init__(self, bins: int, stride: int, dim: int) -> None:
        super().__init__()
        self.subsampling = stride
        self.convolution = nn.Conv1d(bins, dim, kernel_size=stride + 2, stride=stride)
        self.norm = nn.LayerNorm(dim)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give: ceil(T / stride)."""
        return (lengths + self.subsampling - 1) // self.subsampling

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, T', dim)` and the lengths with it. Padded frames are read as zeros."""
        size = features.shape[1]
        features = features.masked_fill(~valid_mask(lengths, size)[..., None], 0.0)
        # One frame is there at least: what an utterance without frames gives has a shape, and a gradient.
        padding = -size % self.subsampling if size else self.subsampling
        features = F.pad(features, (0, 0, 1, padding + 1))
        hidden = self.convolution(features.transpose(1, 2)).transpose(1, 2)
        return self.norm(F.relu(hidden)), self.output_lengths(lengths)


def make_frontend(config: FrontendConfig, bins: int, dim: int) -> Conv2dFrontend | FramesFrontend:
    """The front end that `config.kind` names, of filter banks `bins` and output `dim`."""
    if config.kind == "frames":
        return FramesFrontend(bins, config.stride, dim)
    return Conv2dFrontend(bins, config.channels, config.layers, dim)
