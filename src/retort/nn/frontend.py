"""Front ends: filter banks to vectors, at the same or a lower frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.kinds import builder_of
from retort.config.ranges import number
from retort.config.student import FrontendConfig
from retort.nn.masks import valid_mask

Size = TypeVar("Size", int, Tensor)


class Frontend(Protocol):
    """The first part of an encoder: features to vectors."""

    @property
    def subsampling(self) -> int:
        """Feature frames per output frame."""

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give."""

    def __call__(self, features: Tensor, lengths: Tensor, /) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, T', dim)` and the lengths with it."""


@dataclass
class Conv2dConfig(FrontendConfig):
    """Sizes of convolutions over time and bins."""

    kind: str = "conv2d"
    channels: int = number(128, 1, 8192)
    """Number of channels of each convolution."""
    layers: int = number(1, 1, 2)
    """Number of convolutions of stride 2 (1 or 2); each one halves the frame rate."""


@dataclass
class FramesConfig(FrontendConfig):
    """Sizes of a convolution over time."""

    kind: str = "frames"
    stride: int = number(1, 1, 100)
    """Number of feature frames per output frame: 1 for 10 ms, 3 for 30 ms."""


class Conv2dFrontend(nn.Module):
    """Unpadded 3 x 3 convolutions of stride 2 with ReLU, flattened and projected (CIF-HKD, front end).

    Args:
        config: number of convolutions, each of which maps T frames to floor((T - 1) / 2), and their channels.
        bins: number of filter banks per frame.
        dim: width of the output.
    """

    def __init__(self, config: Conv2dConfig, bins: int, dim: int) -> None:
        super().__init__()
        channels = config.channels
        sizes = [1] + [channels] * config.layers
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2) for before, after in pairwise(sizes)
        )
        self.projection = nn.Linear(channels * self._halve(bins), dim)

    @property
    def subsampling(self) -> int:
        """Feature frames per output frame."""
        return int(2 ** len(self.convolutions))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give."""
        return self._halve(lengths).clamp(min=0)

    before = 0

    @property
    def after(self) -> int:
        """Number of feature frames after its own ones that an output frame depends on."""
        return self.subsampling - 1

    def forward(self, features: Tensor, lengths: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, T', dim)` and the lengths with it. Padded frames are treated as zeros."""
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
    """One convolution over time with ReLU and LayerNorm: an output frame covers its own frames and one on each side.

    Output frame t covers the feature frames from `stride` x t on; the last may have fewer. With stride 1 it
    is the first layer of a TDNN (Peddinti et al. 2015), with stride 3 it has the frame rate of Kaldi's chain
    models.

    Args:
        config: feature frames per output frame.
        bins: number of filter banks per frame.
        dim: width of the output.
    """

    def __init__(self, config: FramesConfig, bins: int, dim: int) -> None:
        super().__init__()
        stride = config.stride
        self.subsampling = stride
        self.convolution = nn.Conv1d(bins, dim, kernel_size=stride + 2, stride=stride)
        self.norm = nn.LayerNorm(dim)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give: ceil(T / stride)."""
        return (lengths + self.subsampling - 1) // self.subsampling

    before = 1
    after = 1

    def forward(self, features: Tensor, lengths: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, T', dim)` and the lengths with it. Padded frames are treated as zeros."""
        size = features.shape[1]
        features = features.masked_fill(~valid_mask(lengths, size)[..., None], 0.0)
        # There is at least one frame, so that the output of an utterance without frames has a shape and a
        # gradient.
        padding = -size % self.subsampling if size else self.subsampling
        features = F.pad(features, (0, 0, 1, padding + 1))
        hidden = self.convolution(features.transpose(1, 2)).transpose(1, 2)
        return self.norm(F.relu(hidden)), self.output_lengths(lengths)


def make_frontend(config: FrontendConfig, bins: int, dim: int) -> nn.Module:
    """Create the front end `config.kind` for `bins` filter banks and output width `dim`."""
    made: nn.Module = builder_of("frontend", config.kind)(config, bins, dim)
    return made
