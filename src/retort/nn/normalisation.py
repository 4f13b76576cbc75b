"""Batch normalisation over valid frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.collectives import process_count, sum_over_processes


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of `(B, T, C)`; padded frames are excluded from the statistics and zero in
    the output.

    In training the statistics are computed over the frames of all processes.
    """

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise `hidden (B, T, C)`; the result is zero where `mask (B, T)` is false."""
        frames = hidden[mask]
        if self.training and process_count() > 1:
            frames = self._normalise_together(frames)
        else:
            # The variance of one frame is undefined: such a batch is normalised by the running statistics.
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
        """Normalise `frames (n, C)` by the statistics of the frames of all processes; n may be 0."""
        values = frames.to(torch.promote_types(frames.dtype, torch.float32))
        own = values.new_full((1,), values.shape[0])
        sums = sum_over_processes(torch.cat((values.sum(0), own)))
        count = int(sums[-1].detach())
        assert self.running_mean is not None
        assert self.running_var is not None
        if count > 1:
            mean = sums[:-1] / count
            # Two-pass variance, since the difference of two large sums would be inaccurate for small
            # variances.
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
