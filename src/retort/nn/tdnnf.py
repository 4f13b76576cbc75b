"""Factorised convolutions over time: a TDNN whose weight matrices have a narrow middle (TDNN-F).

Povey et al., "Semi-orthogonal low-rank matrix factorization for deep neural networks", Interspeech 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.student import EncoderConfig
from retort.nn.cpu_kernels import Dropout
from retort.nn.masks import valid_mask

SKIP = 0.66
"""Share of a layer's input that is added to its output (section 5 of the paper)."""


class Bottleneck(nn.Conv1d):
    """The first factor: no bias, its rows kept orthogonal to each other and of one length by the training loop.

    :func:`nearer_orthogonal` makes the step.
    """

    def __init__(self, dim: int, width: int, dilation: int) -> None:
        super().__init__(dim, width, kernel_size=2, dilation=dilation, bias=False)
        nn.init.orthogonal_(self.weight)


class TdnnfLayer(nn.Module):
    """Bottleneck over (t - d, t), convolution over (t, t + d), ReLU, LayerNorm, dropout, and 0.66 of the input.

    The paper has BatchNorm; LayerNorm depends neither on the batch nor on padding.

    Args:
        config: of the encoder.
        number: of the layer, counted from 1; it chooses among `config.dilations`.
    """

    def __init__(self, config: EncoderConfig, number: int = 1) -> None:
        super().__init__()
        self.dilation = config.dilations[min(number, len(config.dilations)) - 1]
        self.bottleneck = Bottleneck(config.dim, config.bottleneck, self.dilation)
        self.expansion = nn.Conv1d(config.bottleneck, config.dim, kernel_size=2, dilation=self.dilation)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; what stands behind a length is undefined."""
        outside = ~valid_mask(lengths, hidden.shape[1])[:, None]
        hidden = hidden.transpose(1, 2).masked_fill(outside, 0.0)
        narrow = self.bottleneck(F.pad(hidden, (self.dilation, 0))).masked_fill(outside, 0.0)
        wide = F.relu(self.expansion(F.pad(narrow, (0, self.dilation))))
        result: Tensor = self.dropout(self.norm(wide.transpose(1, 2))) + SKIP * hidden.transpose(1, 2)
        return result


@torch.no_grad()
def nearer_orthogonal(weight: Tensor) -> Tensor:
    """One step towards rows that are orthogonal and of equal length, whatever that length is.

    With M the weight as a matrix of as many rows as there are outputs, P = M M' and a = tr(P P) / tr(P), the
    step is M - r / a (P - a I) M, one of gradient descent on tr((P - a I)^2). With r = 1/2 the distance shrinks
    quadratically; where M is far from its aim it is 1/4 or 1/8, or it could grow (as in Kaldi's
    `ConstrainOrthonormal`).

    Args:
        weight: `(rows, ...)` of any floating dtype, with as many columns as rows at least.

    Returns:
        The same shape and dtype, computed in float32 or better. A weight of zeros stays as it is.
    """
    matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    gram = matrix @ matrix.T
    squares, trace = gram.square().sum(), gram.trace()
    ratio = squares * len(gram) / trace.square()  # 1 at the aim, above it elsewhere
    rate = torch.where(ratio > 1.1, 0.125, torch.where(ratio > 1.02, 0.25, 0.5))
    aim = squares / trace
    excess = gram - aim * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    step = rate / aim * excess @ matrix
    return (matrix - step.nan_to_num()).view_as(weight).to(weight.dtype)
