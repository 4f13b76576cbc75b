"""Frames into the positions of a teacher, inside a row: what it trains for that is dropped with the row.

Deng et al., "Improving CTC-based speech recognition via knowledge transferring from pre-trained language models", ICASSP
2022 (arXiv 2203.03582): a recogniser whose output is frames learns a BERT's vectors through one of two ways of
down-sampling. There the number of tokens is given and nothing is said of the sum of the CIF weights; that weights
which are scaled should need little of it (the quantity loss of Dong and Xu 2020) is ours.
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
"""Of the convolution that estimates weights, frames."""


class CifPool(nn.Module):
    """The mean of the frames that belong to a position, by weights of its own that are scaled to the number of positions.

    Args:
        dim: D of the frames.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights = WeightEstimator(dim, KERNEL, dropout=0.0)

    def forward(self, frames: Tensor, lengths: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            frames: `(B, T, D)`, undefined behind `lengths (B,)`.
            counts: `(B,)` int64, positions of each utterance; N is the largest, or 1.

        Returns:
            Vectors `(B, N, D)`, zero behind the counts, and `(B,)`: how far the sum of the weights is from the count,
            0 where that is 0.
        """
        frames = _clean(frames, lengths, self.weights.linear.weight.dtype)
        alphas = self.weights(frames, lengths)
        fired = integrate_and_fire(frames, alphas, lengths, counts)
        distances = (fired.quantity - counts).abs().masked_fill(counts == 0, 0.0)
        # One position at least: every weight gets a gradient, were it zero.
        missing = frames.new_zeros(len(frames), max(0, 1 - fired.embeddings.shape[1]), frames.shape[2])
        return torch.cat((fired.embeddings, missing), dim=1), distances


class AttentionPool(nn.Module):
    """One layer of attention, whose queries are the positions' sinusoids and nothing else.

    Keys have the sinusoids of their frames added: encoders with relative positions do not say where a frame is.

    Args:
        dim: D of the frames, even.
        heads: must divide it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, heads, dropout=0.0)

    def forward(self, frames: Tensor, lengths: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same as of :class:`CifPool`, without a distance; what stands behind the counts is undefined."""
        frames = _clean(frames, lengths, self.attention.output.weight.dtype)
        batch, size, dim = frames.shape
        count = max(1, int(counts.max()) if len(counts) else 0)
        places = torch.arange(max(size, count), device=frames.device)
        table = sinusoids(places, dim).to(frames.dtype)
        queries = table[:count].expand(batch, -1, -1)
        memory = self.attention.memory(frames, frames + table[:size])
        return self.attention(queries, memory, attention_mask(lengths, size)), None


def make_pool(config: RowConfig, dim: int) -> CifPool | AttentionPool | None:
    """What brings the frames of a row to the positions of its teacher; None where nothing does.

    Args:
        dim: D of the row's tap.

    Raises:
        UserError: no such pool, or heads that do not divide the tap.
    """
    if config.pool == "none":
        return None
    if config.pool == "cif":
        return CifPool(dim)
    if config.pool != "attention":
        raise UserError(f"pool is '{config.pool}'", where="distill", remedy="Choose none, cif or attention")
    if dim % (2 * config.pool_heads):
        raise UserError(
            f"pool_heads is {config.pool_heads}, tap '{config.tap}' has {dim} dimensions",
            where="distill",
            remedy="Choose a number whose double divides them",
        )
    return AttentionPool(dim, config.pool_heads)


def _clean(frames: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """In the weights' precision, zero behind the lengths."""
    return frames.to(dtype).masked_fill(~valid_mask(lengths, frames.shape[1])[..., None], 0.0)
