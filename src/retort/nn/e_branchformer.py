"""E-Branchformer layers: a Branchformer whose branches are merged over time, between two half feed-forwards.

Kim et al., "E-Branchformer: Branchformer with Enhanced Merging for Speech Recognition", SLT 2022, arXiv 2210.00077.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retort.nn.branchformer import Branches
from retort.nn.conformer import FeedForward
from retort.nn.depthwise import Depthwise
from retort.nn.dropout import Dropout
from retort.nn.masks import valid_mask
from retort.student_config import EncoderConfig


class ConvolutionMerge(nn.Module):
    """Both branches side by side, to which their depthwise convolution over time is added, and a linear layer.

    Args:
        dim: of each branch and of the output.
        kernel: frames, odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = Depthwise(2 * dim, kernel)
        self.output = nn.Linear(2 * dim, dim)

    def forward(self, attended: Tensor, gated: Tensor, mask: Tensor) -> Tensor:
        """Two `(B, T, dim)`, `mask (B, T)`; padded frames are convolved as zeros."""
        both = torch.cat((attended, gated), dim=-1).masked_fill(~mask[..., None], 0.0)
        result: Tensor = self.output(both + self.depthwise(both))
        return result


class EBranchformerLayer(nn.Module):
    """Half feed-forward, two branches merged, half feed-forward, LayerNorm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.before = FeedForward(dim, config.feedforward, config.dropout)
        self.branches = Branches(config)
        self.merge = ConvolutionMerge(dim, config.merge_kernel)
        self.after = FeedForward(dim, config.feedforward, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; what stands behind a length is undefined."""
        hidden = hidden + 0.5 * self.before(hidden)
        attended, gated = self.branches(hidden, lengths)
        merged = self.merge(attended, gated, valid_mask(lengths, hidden.shape[1]))
        hidden = hidden + self.dropout(merged)
        hidden = hidden + 0.5 * self.after(hidden)
        result: Tensor = self.norm(hidden)
        return result
