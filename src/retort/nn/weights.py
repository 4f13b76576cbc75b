"""The weights that CIF integrates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retort.nn.dropout import Dropout
from retort.nn.masks import valid_mask


class WeightEstimator(nn.Module):
    """Convolution, dropout, linear, sigmoid (CIF-HKD, `conv` estimator: no activation between them).

    Args:
        dim: of the hidden frames.
        kernel: of the convolution, frames.
        dropout: behind the convolution.
        activation: `none`, or `relu` behind the convolution (Dong and Xu 2020).
    """

    def __init__(self, dim: int, kernel: int, dropout: float, activation: str = "none") -> None:
        super().__init__()
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()
        self.convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, 1)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, D)`, zero behind `lengths (B,)`, to alphas `(B, T)` in float32 or better, zero there too."""
        mixed = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        logits = self.linear(self.dropout(self.activation(mixed))).squeeze(-1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.sigmoid().masked_fill(~valid_mask(lengths, hidden.shape[1]), 0.0)
