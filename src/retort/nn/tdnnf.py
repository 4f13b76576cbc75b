"""Factorised TDNN (TDNN-F): convolutions over time whose weights are products with a bottleneck.

Povey et al., "Semi-orthogonal low-rank matrix factorization for deep neural networks", Interspeech 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.ranges import WIDEST, number, numbers
from retort.config.student import EncoderConfig
from retort.nn.cpu_kernels import Dropout
from retort.nn.encoder import LayeredEncoder
from retort.nn.masks import valid_mask

SKIP = 0.66
"""Scale of the skip connection of a layer (section 5 of the paper)."""


@dataclass
class TdnnfConfig(EncoderConfig):
    """Sizes of a TDNN-F."""

    kind: str = "tdnnf"
    layers: int = number(15, 0, 1000)
    """Number of layers."""
    dim: int = number(256, 1, WIDEST)
    """Width of the encoder's output."""
    bottleneck: int = number(128, 1, WIDEST)
    """Dimension between the two factors of a layer's weights, at most 2 x `dim`."""
    dilations: list[int] = numbers([1], 1, 1000)
    """Dilation of each layer in frames (its context to each side); the last number is used for all further layers."""

    @property
    def prose(self) -> str:
        return f"{super().prose}, bottleneck {self.bottleneck}"

    def validate(self, key: str) -> None:
        super().validate(key)
        if self.bottleneck > 2 * self.dim:
            raise UserError(
                f"{key}.bottleneck is {self.bottleneck}", remedy=f"Choose from 1 to {2 * self.dim}, twice the dim"
            )
        if not self.dilations:
            raise UserError(
                f"{key}.dilations is {list(self.dilations)}",
                remedy="Give one or more numbers from 1 on; the last one is used for all further layers",
            )


class Bottleneck(nn.Conv1d):
    """The first factor, without bias; the training loop keeps its rows orthogonal and of equal length, in
    steps of :func:`nearer_orthogonal`.
    """

    def __init__(self, dim: int, width: int, dilation: int) -> None:
        super().__init__(dim, width, kernel_size=2, dilation=dilation, bias=False)
        nn.init.orthogonal_(self.weight)


class TdnnfLayer(nn.Module):
    """Bottleneck over (t - d, t), convolution over (t, t + d), ReLU, LayerNorm, dropout, plus 0.66 times the input.

    The paper has BatchNorm; LayerNorm does not depend on the batch or on padding.

    Args:
        config: configuration of the encoder.
        number: number of the layer, from 1; selects among `config.dilations`.
    """

    def __init__(self, config: TdnnfConfig, number: int = 1) -> None:
        super().__init__()
        self.dilation = config.dilations[min(number, len(config.dilations)) - 1]
        self.bottleneck = Bottleneck(config.dim, config.bottleneck, self.dilation)
        self.expansion = nn.Conv1d(config.bottleneck, config.dim, kernel_size=2, dilation=self.dilation)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        outside = ~valid_mask(lengths, hidden.shape[1])[:, None]
        hidden = hidden.transpose(1, 2).masked_fill(outside, 0.0)
        narrow = self.bottleneck(F.pad(hidden, (self.dilation, 0))).masked_fill(outside, 0.0)
        wide = F.relu(self.expansion(F.pad(narrow, (0, self.dilation))))
        result: Tensor = self.dropout(self.norm(wide.transpose(1, 2))) + SKIP * hidden.transpose(1, 2)
        return result


class TdnnfEncoder(LayeredEncoder[TdnnfConfig]):
    """Front end and TDNN-F layers."""

    def make_layer(self, config: TdnnfConfig, number: int) -> TdnnfLayer:
        return TdnnfLayer(config, number)


@torch.no_grad()
def nearer_orthogonal(weight: Tensor) -> Tensor:
    """One step towards orthogonal rows of equal length.

    Let M be the weight as a matrix with one row per output, P = M M' and a = tr(P P) / tr(P). The step is M -
    r / a (P - a I) M, gradient descent on tr((P - a I)^2). With r = 1/2 convergence is quadratic; if M is far
    from orthogonal, r is 1/4 or 1/8 to avoid divergence (as in Kaldi's `ConstrainOrthonormal`).

    Args:
        weight: `(rows, ...)` of any floating dtype, with at least as many columns as rows.

    Returns:
        The same shape and dtype, computed in float32 or better; a zero weight stays unchanged.
    """
    matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    gram = matrix @ matrix.T
    squares, trace = gram.square().sum(), gram.trace()
    ratio = squares * len(gram) / trace.square()  # 1 if orthogonal, greater otherwise
    rate = torch.where(ratio > 1.1, 0.125, torch.where(ratio > 1.02, 0.25, 0.5))
    aim = squares / trace
    excess = gram - aim * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    step = rate / aim * excess @ matrix
    return (matrix - step.nan_to_num()).view_as(weight).to(weight.dtype)
