"""Pooling of frames to the positions of a teacher, within a row; its parameters are used only in training.

Deng et al., "Improving CTC-based speech recognition via knowledge transferring from pre-trained language models", ICASSP
2022 (arXiv 2203.03582): a recogniser with frame outputs is trained on BERT's vectors through one of two ways of
down-sampling. There the number of tokens is given and the sum of the CIF weights is not constrained; the quantity loss
of Dong and Xu 2020, which keeps the scaling small, is our addition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.nn.attention import CrossAttention
from retort.nn.cif import WeightEstimator, integrate_and_fire
from retort.nn.masks import attention_mask, valid_mask
from retort.nn.positions import sinusoids

KERNEL = 3
"""Kernel size of the convolution that estimates weights, in frames."""


class CifPool(nn.Module):
    """CIF pooling: weighted sums of frames, with estimated weights that are scaled to the number of positions.

    Args:
        dim: D of the frames.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights = WeightEstimator(dim, KERNEL, dropout=0.0)

    def forward(self, frames: Tensor, lengths: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            frames: `(B, T, D)`, undefined after `lengths (B,)`.
            counts: `(B,)` int64, number of positions of each utterance; N is the maximum, at least 1.

        Returns:
            Vectors `(B, N, D)`, zero after the counts, and the distance `(B,)` between the sum of the weights and the
            count, 0 where the count is 0.
        """
        frames = _clean(frames, lengths, self.weights.linear.weight.dtype)
        alphas = self.weights(frames, lengths)
        fired = integrate_and_fire(frames, alphas, lengths, counts)
        distances = (fired.quantity - counts).abs().masked_fill(counts == 0, 0.0)
        # At least one position, so that every parameter gets a gradient.
        missing = frames.new_zeros(len(frames), max(0, 1 - fired.embeddings.shape[1]), frames.shape[2])
        return torch.cat((fired.embeddings, missing), dim=1), distances


class AttentionPool(nn.Module):
    """Pooling by one layer of attention, whose queries are the sinusoids of the positions.

    The sinusoids of the frames are added to the keys, since encoders with relative positions do not encode them.

    Args:
        dim: D of the frames, even.
        heads: must divide `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, heads, dropout=0.0)

    def forward(self, frames: Tensor, lengths: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :class:`CifPool`, without a distance; vectors after the counts are undefined."""
        frames = _clean(frames, lengths, self.attention.output.weight.dtype)
        batch, size, dim = frames.shape
        count = max(1, int(counts.max()) if len(counts) else 0)
        places = torch.arange(max(size, count), device=frames.device)
        table = sinusoids(places, dim).to(frames.dtype)
        queries = table[:count].expand(batch, -1, -1)
        memory = self.attention.memory(frames, frames + table[:size])
        return self.attention(queries, memory, attention_mask(lengths, size)), None


def make_pool(config: RowConfig, dim: int) -> CifPool | AttentionPool | None:
    """Build the pooling of a row; None for `pool: none`.

    Args:
        dim: dimension of the row's tap.

    Raises:
        UserError: the pool is unknown, or its heads do not divide the dimension.
    """
    if config.pool == "none":
        return None
    if config.pool == "cif":
        return CifPool(dim)
    if config.pool != "attention":
        raise UserError(f"unknown pool '{config.pool}'", where="distill", remedy="Choose none, cif or attention")
    if dim % (2 * config.pool_heads):
        raise UserError(
            f"pool_heads is {config.pool_heads}, tap '{config.tap}' has {dim} dimensions",
            where="distill",
            remedy="Choose a number of heads whose double divides the dimensions",
        )
    return AttentionPool(dim, config.pool_heads)


def _clean(frames: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """The frames in the parameters' precision, zero after the lengths."""
    return frames.to(dtype).masked_fill(~valid_mask(lengths, frames.shape[1])[..., None], 0.0)
