"""Conformer and Transformer layers over padded batches of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import WIDEST, choice, number
from retort.config.student import EncoderConfig, check_heads, check_odd
from retort.nn.attention import ATTENTIONS
from retort.nn.chunks import Chunks, context_mask
from retort.nn.cpu_kernels import Depthwise, Dropout
from retort.nn.encoder import LayeredEncoder
from retort.nn.masks import valid_mask
from retort.nn.normalisation import MaskedBatchNorm


@dataclass
class AttentionEncoderConfig(EncoderConfig):
    """What all encoders with layers of self-attention have."""

    layers: int = number(15, 0, 1000)
    """Number of layers."""
    dim: int = number(256, 1, WIDEST)
    """Width of the encoder's output."""
    heads: int = number(4, 1, 1024)
    """Number of attention heads."""
    positions: str = choice("relative", "rotary")
    """`relative` (Transformer-XL, as in the reference) or `rotary` (faster on a CPU)."""
    attention_dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability of attention weights. 0 allows a fused attention kernel, which is much faster on a CPU."""

    def validate(self, key: str) -> None:
        super().validate(key)
        check_heads(key, self.dim, self.heads)


@dataclass
class TransformerConfig(AttentionEncoderConfig):
    """Sizes of a Transformer."""

    chunked: ClassVar[bool] = True

    kind: str = "transformer"
    feedforward: int = number(2048, 1, WIDEST)
    """Width of the feed-forward modules."""

    @property
    def prose(self) -> str:
        return f"{super().prose}, {self.heads} heads, feed-forward {self.feedforward}"


@dataclass
class ConformerConfig(TransformerConfig):
    """Sizes of a Conformer."""

    kind: str = "conformer"
    kernel: int = number(15, 1, 1001)
    """Kernel size of the depthwise convolution in frames; odd."""
    convolution_norm: str = choice("batch", "layer")
    """Normalisation after that convolution: `batch` (as in the reference) or `layer`. In batches of few utterances the
    statistics differ so much from the running statistics of `batch` that CIF fires too many or too few tokens in
    evaluation."""

    def validate(self, key: str) -> None:
        super().validate(key)
        check_odd(f"{key}.kernel", self.kernel)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with SiLU."""

    def __init__(self, dim: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feedforward)
        self.contract = nn.Linear(feedforward, dim)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.dropout(F.silu(self.expand(self.norm(hidden))))
        result: Tensor = self.dropout(self.contract(hidden))
        return result


class ConvolutionBlock(nn.Module):
    """Pointwise convolution with GLU, depthwise convolution, a norm, SiLU, pointwise convolution.

    Padded frames are zero before the depthwise convolution and excluded from the statistics, so padding never
    changes a valid frame. The convolutions have no bias (Gulati et al. 2020, section 2.2).
    """


    def __init__(self, dim: int, kernel: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim, bias=False)
        self.depthwise = Depthwise(dim, kernel, bias=False)
        self.batch_norm = MaskedBatchNorm(dim) if norm == "batch" else None
        self.layer_norm = nn.LayerNorm(dim) if norm == "layer" else None
        self.output = nn.Linear(dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `mask (B, T)`."""
        hidden = F.glu(self.gate(self.norm(hidden)), dim=-1).masked_fill(~mask[..., None], 0.0)
        hidden = self.depthwise(hidden, chunks)
        if self.batch_norm is not None:
            hidden = self.batch_norm(hidden, mask)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        hidden = F.silu(hidden)
        result: Tensor = self.dropout(self.output(hidden))
        return result


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm (Gulati et al. 2020)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.before = FeedForward(dim, config.feedforward, config.dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = ATTENTIONS[config.positions](dim, config.heads, config.attention_dropout)
        self.convolution = ConvolutionBlock(dim, config.kernel, config.convolution_norm, config.dropout)
        self.after = FeedForward(dim, config.feedforward, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        frames = hidden.shape[1]
        hidden = hidden + 0.5 * self.before(hidden)
        attended = self.attention(self.attention_norm(hidden), context_mask(lengths, frames, chunks), chunks)
        hidden = hidden + self.dropout(attended)
        hidden = hidden + self.convolution(hidden, valid_mask(lengths, frames), chunks)
        hidden = hidden + 0.5 * self.after(hidden)
        result: Tensor = self.norm(hidden)
        return result


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward (Vaswani et al. 2017)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = ATTENTIONS[config.positions](config.dim, config.heads, config.attention_dropout)
        self.feedforward = FeedForward(config.dim, config.feedforward, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        mask = context_mask(lengths, hidden.shape[1], chunks)
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), mask, chunks))
        result: Tensor = hidden + self.feedforward(hidden)
        return result


class ConformerEncoder(LayeredEncoder[ConformerConfig]):
    """Front end and Conformer layers."""

    def make_layer(self, config: ConformerConfig, number: int) -> ConformerLayer:
        return ConformerLayer(config)


class TransformerEncoder(LayeredEncoder[TransformerConfig]):
    """Front end and Transformer layers, whose output is normalised, while a Conformer layer ends in a norm."""

    final_norm = True

    def make_layer(self, config: TransformerConfig, number: int) -> TransformerLayer:
        return TransformerLayer(config)
