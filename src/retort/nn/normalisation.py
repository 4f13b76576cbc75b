"""Batch normalisation that counts valid frames only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.collectives import process_count, sum_over_processes


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of `(B, T, C)`; padded frames neither enter the statistics nor come out.

    In training the statistics are those of the frames of all processes, as if one process had them all.
    """

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise `hidden (B, T, C)`; where `mask (B, T)` is false the result is zero."""
        frames = hidden[mask]
        if self.training and process_count() > 1:
            frames = self._normalise_together(frames)
        else:
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

    def _normalise_together(self, frames: Tensor) -> Tensor:
        """`frames (n, C)` by the statistics of all processes' frames; n may be 0 here."""
        values = frames.to(torch.promote_types(frames.dtype, torch.float32))
        own = values.new_full((1,), values.shape[0])
        sums = sum_over_processes(torch.cat((values.sum(0), own)))
        count = int(sums[-1].detach())
        assert self.running_mean is not None
        assert self.running_var is not None
        if count > 1:
            mean = sums[:-1] / count
            # A second round: the difference of two large sums would lose what small variances say.
            variance = sum_over_processes((values - mean).square().sum(0)) / count
            self._learn(mean.detach(), variance.detach() * (count / (count - 1)))
        else:
            mean, variance = self.running_mean, self.running_var
        normalised = (values - mean) * (variance + self.eps).rsqrt()
        return (normalised * self.weight + self.bias).to(frames.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        momentum = self.momentum or 0.1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
