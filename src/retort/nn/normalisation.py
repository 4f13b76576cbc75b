"""Batch normalisation that counts valid frames only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of `(B, T, C)`; padded frames neither enter the statistics nor come out."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise `hidden (B, T, C)`; where `mask (B, T)` is false the result is zero."""
        frames = hidden[mask]
        # One frame has no variance: such a batch is normalised by the running statistics.
        learning = self.training and frames.shape[0] > 1
        if learning and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        frames = F.batch_norm(
            frames,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            learning,
            self.momentum or 0.1,
            self.eps,
        )
        return hidden.new_zeros(hidden.shape, dtype=frames.dtype).masked_scatter(mask[..., None], frames)
