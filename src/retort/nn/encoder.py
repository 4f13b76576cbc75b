"""The encoder: front end, layers, and max pooling after chosen layers."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from retort.config import EncoderConfig, FrontendConfig
from retort.nn.conformer import ConformerLayer, TransformerLayer
from retort.nn.dropout import Dropout
from retort.nn.frontend import Conv2dFrontend
from retort.nn.masks import valid_mask

LAYERS: dict[str, type[ConformerLayer] | type[TransformerLayer]] = {
    "conformer": ConformerLayer,
    "transformer": TransformerLayer,
}


def max_pool(hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over pairs of frames: `(B, T, D)` to `(B, ceil(T / 2), D)`, lengths to ceil(L / 2).

    Padding counts as minus infinity, so an odd last frame stays alone; frames behind the new lengths are zero.
    """
    batch, frames, dim = hidden.shape
    hidden = hidden.masked_fill(~valid_mask(lengths, frames)[..., None], float("-inf"))
    hidden = F.pad(hidden, (0, 0, 0, frames % 2), value=float("-inf"))
    pooled = hidden.view(batch, -1, 2, dim).amax(dim=2)
    lengths = (lengths + 1) // 2
    return pooled.masked_fill(~valid_mask(lengths, pooled.shape[1])[..., None], 0.0), lengths


class Encoder(nn.Module):
    """Filter banks to `hidden` at a lower rate (CIF-HKD: 1/2 by convolution, 1/4 by pooling).

    Args:
        frontend: sizes of the convolutional front end.
        config: kind, number and sizes of the layers.
        bins: filter banks a frame.
        faithful: the reference's input: scaled by sqrt(dim) and projected once more.
    """

    def __init__(
        self, frontend: FrontendConfig, config: EncoderConfig, bins: int, faithful: bool = False
    ) -> None:
        super().__init__()
        self.frontend = Conv2dFrontend(bins, frontend.channels, frontend.layers, config.dim)
        self.input_projection = nn.Linear(config.dim, config.dim) if faithful else None
        self.scale = math.sqrt(config.dim) if faithful else 1.0
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(LAYERS[config.kind](config) for _ in range(config.layers))
        self.pool_after = frozenset(config.pool_after)
        # A Transformer layer with the norm first leaves its sum unnormalised; a Conformer layer ends in a norm.
        self.norm = nn.LayerNorm(config.dim) if config.kind == "transformer" else nn.Identity()
        self.convolutions = frontend.layers

    @property
    def subsampling(self) -> int:
        """Feature frames in one encoder frame."""
        return int(2 ** (self.convolutions + len(self.pool_after)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames `(B,)` that so many feature frames give."""
        for _ in range(self.convolutions):
            lengths = ((lengths - 1) // 2).clamp(min=0)
        for _ in self.pool_after:
            lengths = (lengths + 1) // 2
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (B, T, bins)` to `hidden (B, T', dim)` float32 and lengths; frames behind them are zero."""
        hidden, lengths = self.frontend(features, lengths)
        hidden = hidden * self.scale
        if self.input_projection is not None:
            hidden = self.input_projection(hidden)
        hidden = self.dropout(hidden)
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, lengths)
            if number in self.pool_after:
                hidden, lengths = max_pool(hidden, lengths)
        hidden = self.norm(hidden).float()
        return hidden.masked_fill(~valid_mask(lengths, hidden.shape[1])[..., None], 0.0), lengths
