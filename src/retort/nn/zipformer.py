"""Zipformer stacks: blocks at decreasing and then increasing frame rates, as in a U-Net.

Yao et al., "Zipformer: A faster and better encoder for automatic speech recognition", ICLR 2024, arXiv 2310.11230.
Of the paper's front end (Conv-Embed) only the final norm is included; the stacks follow a front end of this
package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.ranges import BILLION, WIDEST, number, numbers
from retort.config.student import EncoderConfig
from retort.nn.attention import distance_to_key
from retort.nn.chunks import Chunks, context_mask, with_past
from retort.nn.cpu_kernels import Depthwise, Dropout
from retort.nn.encoder import LayeredEncoder
from retort.nn.masks import valid_mask
from retort.nn.pooling import Downsample
from retort.nn.positions import compact_table


@dataclass
class ZipformerConfig(EncoderConfig):
    """Sizes of a Zipformer, lists with one number per stack; the defaults are those of the published Zipformer-M."""

    chunked: ClassVar[bool] = True

    kind: str = "zipformer"
    blocks: list[int] = numbers([2, 2, 3, 4, 3, 2], 1, 100)
    """Number of Zipformer blocks of each stack."""
    downsampling: list[int] = numbers([1, 2, 4, 8, 4, 2], 1, 1000)
    """Number of front-end frames per frame of the stack; 1 keeps the frame rate."""
    dims: list[int] = numbers([192, 256, 384, 512, 384, 256], 4, WIDEST)
    """Channels, multiples of 4. The largest is the width of the encoder's output."""
    heads: list[int] = numbers([4, 4, 4, 8, 4, 4], 1, 1024)
    """Number of attention heads."""
    feedforward: list[int] = numbers([512, 768, 1024, 1536, 1024, 768], 4, WIDEST)
    """Width of the second of the three feed-forward modules of a block, a multiple of 4; the first has 3/4 and the
    third 5/4 of it."""
    kernels: list[int] = numbers([31, 31, 15, 15, 15, 31], 1, 1001)
    """Kernel sizes of the depthwise convolutions in frames of the stack; odd."""
    query_dim: int = number(32, 1, WIDEST)
    """Dimension of queries and keys per head."""
    value_dim: int = number(12, 1, WIDEST)
    """Dimension of values per head."""
    position_dim: int = number(4, 1, WIDEST)
    """Dimension of the positional part of the queries per head."""
    table_dim: int = number(48, 2, WIDEST)
    """Dimension of the sinusoidal relative position encoding; even."""
    attention_dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability of attention weights."""
    straight_steps: int = number(20000, 0, BILLION)
    """Number of updates at the start of training during which the scale of the bypass of every block and stack is at
    least 0.9; afterwards it is at least 0.2. Use 0 to continue from a trained model."""

    @property
    def layers(self) -> int:
        """Number of stacks."""
        return len(self.blocks)

    @property
    def dim(self) -> int:
        """Width of the widest stack."""
        return max(self.dims)

    @property
    def prose(self) -> str:
        stacks: dict[str, Sequence[int | str]] = {
            "blocks": self.blocks,
            "rates": [f"1/{each}" for each in self.downsampling],
            "dims": self.dims,
            "heads": self.heads,
            "feed-forward": self.feedforward,
        }
        sizes = (f"{name} {' '.join(map(str, numbers))}" for name, numbers in stacks.items())
        return f"{self.layers} zipformer stacks: {', '.join(sizes)}"

    def validate(self, key: str) -> None:
        for name in ("blocks", "downsampling", "dims", "heads", "feedforward", "kernels"):
            values = getattr(self, name)
            if not values or len(values) != self.layers:
                raise UserError(
                    f"{key}.{name} has {len(values)} numbers, {key}.blocks has {self.layers}",
                    remedy="Give one number per stack",
                )
        for name, step, values in (
            ("dims", 4, self.dims),
            ("feedforward", 4, self.feedforward),
            ("table_dim", 2, [self.table_dim]),
        ):
            if any(each % step for each in values):
                raise UserError(f"{key}.{name} is {getattr(self, name)}", remedy=f"Choose multiples of {step}")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UserError(f"{key}.kernels is {self.kernels}", remedy="Choose odd numbers")
        super().validate(key)


LEAST, MOST, STRAIGHT = 0.2, 1.0, 0.9
"""The training loop keeps the weights of a :class:`Bypass` between the first two values, initially between the last
two (section 3.2)."""
_TINY = 1e-12


def swoosh_r(hidden: Tensor) -> Tensor:
    """SwooshR: log(1 + exp(x - 1)) - 0.08 x - 0.313261687, which is 0 at 0 (section 3.4)."""
    return F.softplus(hidden - 1.0) - 0.08 * hidden - 0.313261687


def swoosh_l(hidden: Tensor) -> Tensor:
    """SwooshL: log(1 + exp(x - 4)) - 0.08 x - 0.035, for modules that are usually off (section 3.4)."""
    return F.softplus(hidden - 4.0) - 0.08 * hidden - 0.035


def scaled_linear(inputs: int, outputs: int, scale: float) -> nn.Linear:
    """A linear layer whose initial weights are `scale` times torch's; the bias is uniform within 0.1 x `scale`."""
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.mul_(scale)
        nn.init.uniform_(linear.bias, -0.1 * scale, 0.1 * scale)
    return linear


class BiasNorm(nn.Module):
    """x / RMS(x - bias) x exp(log_scale), with a bias for each channel and one scale (section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(1e-4 * torch.randn(dim))
        self.log_scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden (..., dim)` of any floating dtype; the result is in float32 or better."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        power = (hidden - self.bias).square().mean(-1, keepdim=True)
        return hidden * ((power + _TINY).rsqrt() * self.log_scale.exp())


class Bypass(nn.Module):
    """(1 - c) x before + c x after, with c for each channel (section 3.2).

    :func:`retort.engine.parameters.constrain` keeps c within its limits.

    Args:
        dim: number of channels.
        straight_steps: number of updates in which c is at least `STRAIGHT`, also its initial value; if 0, c is
            initially 0.5.
    """

    def __init__(self, dim: int, straight_steps: int = 0) -> None:
        super().__init__()
        self.straight_steps = straight_steps
        self.weight = nn.Parameter(torch.full((dim,), STRAIGHT if straight_steps else 0.5))

    def limits(self, step: int) -> tuple[float, float]:
        """Limits of c after update number `step`, counted from 0."""
        return (STRAIGHT if step < self.straight_steps else LEAST), MOST

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Combine two tensors `(..., dim)`."""
        return before + (after - before) * self.weight


class AttentionWeights(nn.Module):
    """Attention weights by content and distance (multi-head attention weight, section 3.2).

    Queries and keys are not divided by the root of their width; their initial weights are smaller instead.

    Args:
        dim: width of the input.
        heads: number of heads.
        query: width of queries and keys per head.
        position: width of the position term per head.
        table: width of the distance table.
        dropout: dropout of the weights.
    """

    def __init__(self, dim: int, heads: int, query: int, position: int, table: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.table = heads, table
        self.sizes = (query, query, position)
        self.projection = scaled_linear(dim, heads * sum(self.sizes), query**-0.25)
        self.position = nn.Linear(table, heads * position, bias=False)
        with torch.no_grad():
            self.position.weight.mul_(0.05)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Weights `(B, heads, T, S)` for `hidden (B, T, dim)` and `mask (B, 1, 1 or T, S)`, true for keys that may be
        attended to; S is T, in a stream with the number of cached keys."""
        parts = self.projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, place = parts.split(self.sizes, dim=-1)
        key = with_past(chunks, self, "key", key)
        keys = key.shape[2]
        table = compact_table(keys, self.table, hidden.device).to(hidden.dtype)[: keys + query.shape[2] - 1]
        distances = self.position(table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        scores = query @ key.transpose(-1, -2) + distance_to_key(place @ distances)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, float("-inf"))
        weights: Tensor = self.dropout(wide.softmax(-1).to(scores.dtype))
        return weights


class WeightedSum(nn.Module):
    """Self-attention with given weights: values, their weighted sums, and a projection to `dim`."""

    def __init__(self, dim: int, heads: int, value: int) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(dim, heads * value)
        self.output = scaled_linear(heads * value, dim, 0.05)

    def forward(self, hidden: Tensor, weights: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `weights (B, heads, T, S)`."""
        value = self.value(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        value = with_past(chunks, self, "value", value)
        result: Tensor = self.output((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return result


class NonLinearAttention(nn.Module):
    """linear(A x attention(tanh(B) x C)), each of 3/4 of the width, with the weights of one head (section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = 3 * dim // 4
        self.projection = nn.Linear(dim, 3 * width)
        self.output = scaled_linear(width, dim, 0.05)

    def forward(self, hidden: Tensor, weights: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `weights (B, heads, T, S)`; only the first head is used."""
        outer, gate, value = self.projection(hidden).chunk(3, dim=-1)
        gated = with_past(chunks, self, "value", (gate.tanh() * value)[:, None])[:, 0]
        result: Tensor = self.output(outer * (weights[:, 0].to(value.dtype) @ gated))
        return result


class FeedForward(nn.Module):
    """Expansion with SwooshL, dropout, contraction; no norm."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, width)
        self.contract = scaled_linear(width, dim, 0.1)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.contract(self.dropout(swoosh_l(self.expand(hidden))))
        return result


class Convolution(nn.Module):
    """Pointwise convolution with GLU, depthwise convolution, SwooshR, pointwise convolution; no norm.

    Args:
        dim: width of input and output.
        kernel: width of the depthwise convolution in frames, odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = Depthwise(dim, kernel)
        self.output = scaled_linear(dim, dim, 0.05)

    def forward(self, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `mask (B, T)`; padded frames are treated as zeros."""
        hidden = F.glu(self.gate(hidden), dim=-1).masked_fill(~mask[..., None], 0.0)
        result: Tensor = self.output(swoosh_r(self.depthwise(hidden, chunks)))
        return result


class ZipformerBlock(nn.Module):
    """Zipformer block (section 3.2, figure 2). The three feed-forwards are 3/4, 1 and 5/4 of the configured width.

    The paper's Balancer and Whitener, which change only gradients, and the random dropping of modules, blocks and
    channels in its implementation are omitted.

    Args:
        config: configuration of the encoder.
        stack: index of the stack that determines the sizes, from 0.
    """

    def __init__(self, config: ZipformerConfig, stack: int) -> None:
        super().__init__()
        dim, heads, width = config.dims[stack], config.heads[stack], config.feedforward[stack]
        self.weights = AttentionWeights(
            dim, heads, config.query_dim, config.position_dim, config.table_dim, config.attention_dropout
        )
        self.nonlinear = NonLinearAttention(dim)
        self.attentions = nn.ModuleList(WeightedSum(dim, heads, config.value_dim) for _ in range(2))
        self.convolutions = nn.ModuleList(Convolution(dim, config.kernels[stack]) for _ in range(2))
        self.feedforwards = nn.ModuleList(
            FeedForward(dim, quarters * width // 4, config.dropout) for quarters in (3, 4, 5)
        )
        self.bypasses = nn.ModuleList(Bypass(dim, config.straight_steps) for _ in range(2))
        self.norm = BiasNorm(dim)

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        frames = hidden.shape[1]
        mask = valid_mask(lengths, frames)
        weights = self.weights(hidden, context_mask(lengths, frames, chunks), chunks)
        before = hidden
        hidden = hidden + self.feedforwards[0](hidden)
        hidden = hidden + self.nonlinear(hidden, weights, chunks)
        hidden = hidden + self.attentions[0](hidden, weights, chunks)
        hidden = hidden + self.convolutions[0](hidden, mask, chunks)
        hidden = hidden + self.feedforwards[1](hidden)
        hidden = self.bypasses[0](before, hidden)
        hidden = hidden + self.attentions[1](hidden, weights, chunks)
        hidden = hidden + self.convolutions[1](hidden, mask, chunks)
        hidden = hidden + self.feedforwards[2](hidden)
        result: Tensor = self.bypasses[1](before, self.norm(hidden))
        return result


class ZipformerStack(nn.Module):
    """Blocks between :class:`Downsample` and upsampling by repetition; the frame rate of input and output is the same.

    A stack changes its first channels, as many as it is wide, and passes the others, so every output channel is
    that of the most recent stack that has it. With widths that rise and fall this is the paper's padding,
    truncation and final concatenation.

    Args:
        config: configuration of the encoder; `dim` is the width of the widest stack.
        number: number of the stack, from 1; the first one starts with the final norm of the paper's front end.
    """

    def __init__(self, config: ZipformerConfig, number: int = 1) -> None:
        super().__init__()
        index = number - 1
        self.dim, self.width, factor = config.dims[index], config.dim, config.downsampling[index]
        self.entry = BiasNorm(self.dim) if number == 1 else nn.Identity()
        self.factor = factor
        self.downsample = Downsample(factor) if factor > 1 else None
        self.blocks = nn.ModuleList(ZipformerBlock(config, index) for _ in range(config.blocks[index]))
        self.bypass = Bypass(self.dim, config.straight_steps) if factor > 1 else None

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, n)` to `(B, T, config.dim)`, `lengths (B,)`; values beyond the lengths are undefined.

        For n < config.dim the missing channels are zeros.
        """
        hidden = F.pad(hidden, (0, self.width - hidden.shape[-1]))
        changed, passed = hidden.split((self.dim, self.width - self.dim), dim=-1)
        changed = self._stacked(self.entry(changed), lengths, chunks)
        return torch.cat((changed, passed.to(changed.dtype)), dim=-1)

    def _stacked(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        before, factor = hidden, 1
        if self.downsample is not None:
            hidden, lengths = self.downsample(hidden, lengths)
            factor = len(self.downsample.weight)
            chunks = None if chunks is None else chunks.at_rate(factor)
        for block in self.blocks:
            hidden = block(hidden, lengths, chunks)
        if self.bypass is None:
            return hidden
        repeated = hidden[:, :, None].expand(-1, -1, factor, -1).flatten(1, 2)
        result: Tensor = self.bypass(before, repeated[:, : before.shape[1]])
        return result


class ZipformerEncoder(LayeredEncoder[ZipformerConfig]):
    """Front end and stacks; the input has the width of the first stack."""

    learned_pools = True

    def input_dim(self, config: ZipformerConfig) -> int:
        return config.dims[0]

    def make_layer(self, config: ZipformerConfig, number: int) -> ZipformerStack:
        return ZipformerStack(config, number)

    def context_layer(self, number: int) -> ZipformerBlock:
        """A single block with the sizes of the widest stack."""
        return ZipformerBlock(self.config, self.config.dims.index(self.config.dim))
