"""Branchformer layers: self-attention in parallel with a gated convolution.

Peng et al., "Branchformer: Parallel MLP-Attention Architectures to Capture Local and Global Context for Speech
Recognition and Understanding", ICML 2022, arXiv 2207.02971.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.ranges import WIDEST, choice, number
from retort.config.student import check_odd
from retort.nn.attention import ATTENTIONS
from retort.nn.conformer import AttentionEncoderConfig, FeedForward
from retort.nn.cpu_kernels import Depthwise, Dropout
from retort.nn.encoder import LayeredEncoder
from retort.nn.masks import attention_mask, valid_mask


@dataclass
class BranchesConfig(AttentionEncoderConfig):
    """What both kinds of Branchformers have."""

    cgmlp: int = number(1536, 2, WIDEST)
    """Width of the cgMLP before its gate halves it, even; 6 x `dim` in the large models of the papers."""
    cgmlp_kernel: int = number(31, 1, 1001)
    """Kernel size of the depthwise convolution in the gate of the cgMLP, in frames; odd."""

    def validate(self, key: str) -> None:
        super().validate(key)
        check_odd(f"{key}.cgmlp_kernel", self.cgmlp_kernel)
        if self.cgmlp % 2:
            raise UserError(f"{key}.cgmlp is {self.cgmlp}", remedy="Choose an even number")


@dataclass
class BranchformerConfig(BranchesConfig):
    """Sizes of a Branchformer."""

    kind: str = "branchformer"
    merge: str = choice("concat", "average")
    """How the branches are merged: `concat` (by a linear layer) or `average` (with learned weights, two per
    utterance)."""

    @property
    def prose(self) -> str:
        return f"{super().prose}, {self.heads} heads, cgMLP {self.cgmlp}"


@dataclass
class EBranchformerConfig(BranchesConfig):
    """Sizes of an E-Branchformer."""

    kind: str = "e_branchformer"
    feedforward: int = number(2048, 1, WIDEST)
    """Width of the feed-forward modules."""
    merge_kernel: int = number(31, 1, 1001)
    """Kernel size of the depthwise convolution over the merged branches, in frames; odd."""

    @property
    def prose(self) -> str:
        return f"{super().prose}, {self.heads} heads, feed-forward {self.feedforward}, cgMLP {self.cgmlp}"

    def validate(self, key: str) -> None:
        super().validate(key)
        check_odd(f"{key}.merge_kernel", self.merge_kernel)


class SpatialGate(nn.Module):
    """Convolutional spatial gating unit: one half of the channels times a convolution over time of the other.

    The second half is normalised and convolved channel by channel. Initially its weights are near zero and
    its bias is one, so that the gate is open (as in gMLP, Liu et al. 2021).

    Args:
        width: width of the input, even.
        kernel: number of frames, odd.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        half = width // 2
        self.norm = nn.LayerNorm(half)
        self.depthwise = Depthwise(half, kernel)
        nn.init.normal_(self.depthwise.weight, std=1e-6)
        assert self.depthwise.bias is not None
        nn.init.ones_(self.depthwise.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden (B, T, width)`, `mask (B, T)` to `(B, T, width / 2)`; padded frames are treated as zeros."""
        passed, gate = hidden.chunk(2, dim=-1)
        gate = self.norm(gate).masked_fill(~mask[..., None], 0.0)
        result: Tensor = passed * self.depthwise(gate)
        return result


class GatedMlp(nn.Module):
    """Pre-norm cgMLP: expansion with GELU, :class:`SpatialGate`, contraction.

    Args:
        dim: width of input and output.
        width: width of the expansion, even.
        kernel: width of the gate's convolution.
        dropout: dropout after the gate and after the contraction.
    """

    def __init__(self, dim: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, width)
        self.gate = SpatialGate(width, kernel)
        self.contract = nn.Linear(width // 2, dim)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `mask (B, T)`."""
        hidden = self.gate(F.gelu(self.expand(self.norm(hidden))), mask)
        result: Tensor = self.dropout(self.contract(self.dropout(hidden)))
        return result


class Branches(nn.Module):
    """Base class of both kinds of Branchformer layers: attention and cgMLP over the same input."""

    def __init__(self, config: BranchesConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = ATTENTIONS[config.positions](dim, config.heads, config.attention_dropout)
        self.gated = GatedMlp(dim, config.cgmlp, config.cgmlp_kernel, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs `(B, T, dim)` of attention and cgMLP for `hidden (B, T, dim)`, `lengths (B,)`."""
        frames = hidden.shape[1]
        attended = self.attention(self.attention_norm(hidden), attention_mask(lengths, frames))
        return self.dropout(attended), self.gated(hidden, valid_mask(lengths, frames))


class AverageMerge(nn.Module):
    """Weighted average of two branches, with one pair of weights per utterance.

    Each branch is pooled over time by attention; a linear layer maps the result to a score, and the weights
    are the softmax of both scores.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pooling = nn.ModuleList(nn.Linear(dim, 1) for _ in range(2))
        self.score = nn.ModuleList(nn.Linear(dim, 1) for _ in range(2))
        self.output = nn.Linear(dim, dim)

    def weights(self, branches: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Weights `(B, 2)` of two `(B, T, dim)` with the valid keys `mask (B, 1, 1, T)`."""
        scores = []
        for branch, pooling, score in zip(branches, self.pooling, self.score):
            keys = pooling(branch).squeeze(-1) / math.sqrt(branch.shape[-1])
            shares = keys.masked_fill(~mask[:, 0, 0], float("-inf")).softmax(-1).to(branch.dtype)
            scores.append(score((shares[:, None] @ branch).squeeze(1)))
        return torch.cat(scores, dim=-1).softmax(-1)

    def forward(self, attended: Tensor, gated: Tensor, lengths: Tensor) -> Tensor:
        outside = ~valid_mask(lengths, attended.shape[1])[..., None]
        branches = (attended.masked_fill(outside, 0.0), gated.masked_fill(outside, 0.0))
        shares = self.weights(branches, attention_mask(lengths, attended.shape[1]))
        first, second = (share[:, None, None] for share in shares.unbind(-1))
        result: Tensor = self.output(first * branches[0] + second * branches[1])
        return result


class ConcatMerge(nn.Module):
    """Concatenation of both branches and a linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(2 * dim, dim)

    def forward(self, attended: Tensor, gated: Tensor, lengths: Tensor) -> Tensor:
        result: Tensor = self.output(torch.cat((attended, gated), dim=-1))
        return result


MERGES: dict[str, type[ConcatMerge] | type[AverageMerge]] = {"concat": ConcatMerge, "average": AverageMerge}
"""Modules by `encoder.merge`; called with two branches `(B, T, dim)` and `lengths (B,)`."""


class BranchformerLayer(nn.Module):
    """Two branches, merged, added to the input, LayerNorm."""

    def __init__(self, config: BranchformerConfig) -> None:
        super().__init__()
        self.branches = Branches(config)
        self.merge = MERGES[config.merge](config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        merged = self.merge(*self.branches(hidden, lengths), lengths)
        result: Tensor = self.norm(hidden + self.dropout(merged))
        return result


class ConvolutionMerge(nn.Module):
    """Concatenation of both branches, plus its depthwise convolution over time, and a linear layer.

    Args:
        dim: width of each branch and of the output.
        kernel: number of frames, odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = Depthwise(2 * dim, kernel)
        self.output = nn.Linear(2 * dim, dim)

    def forward(self, attended: Tensor, gated: Tensor, mask: Tensor) -> Tensor:
        """Two `(B, T, dim)`, `mask (B, T)`; padded frames are treated as zeros."""
        both = torch.cat((attended, gated), dim=-1).masked_fill(~mask[..., None], 0.0)
        result: Tensor = self.output(both + self.depthwise(both))
        return result


class EBranchformerLayer(nn.Module):
    """Half feed-forward, two branches merged, half feed-forward, LayerNorm."""

    def __init__(self, config: EBranchformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.before = FeedForward(dim, config.feedforward, config.dropout)
        self.branches = Branches(config)
        self.merge = ConvolutionMerge(dim, config.merge_kernel)
        self.after = FeedForward(dim, config.feedforward, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        hidden = hidden + 0.5 * self.before(hidden)
        attended, gated = self.branches(hidden, lengths)
        merged = self.merge(attended, gated, valid_mask(lengths, hidden.shape[1]))
        hidden = hidden + self.dropout(merged)
        hidden = hidden + 0.5 * self.after(hidden)
        result: Tensor = self.norm(hidden)
        return result


class BranchformerEncoder(LayeredEncoder[BranchformerConfig]):
    """Front end and Branchformer layers."""

    def make_layer(self, config: BranchformerConfig, number: int) -> BranchformerLayer:
        return BranchformerLayer(config)


class EBranchformerEncoder(LayeredEncoder[EBranchformerConfig]):
    """Front end and E-Branchformer layers."""

    def make_layer(self, config: EBranchformerConfig, number: int) -> EBranchformerLayer:
        return EBranchformerLayer(config)
