"""Pooling of frames to a lower frame rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.masks import valid_mask


def max_pool(hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over pairs of frames: `(B, T, D)` to `(B, ceil(T / 2), D)`, lengths to ceil(L / 2).

    Padding counts as minus infinity, so an odd last frame stays unchanged; frames beyond the new lengths are zero.
    """
    batch, frames, dim = hidden.shape
    hidden = hidden.masked_fill(~valid_mask(lengths, frames)[..., None], float("-inf"))
    hidden = F.pad(hidden, (0, 0, 0, frames % 2), value=float("-inf"))
    pooled = hidden.view(batch, -1, 2, dim).amax(dim=2)
    lengths = (lengths + 1) // 2
    return pooled.masked_fill(~valid_mask(lengths, pooled.shape[1])[..., None], 0.0), lengths


class Downsample(nn.Module):
    """Weighted mean over `factor` frames, with one learned weight per position, softmax-normalised (section 3.1).

    For the last frames of an utterance the weights are normalised over the valid ones; the authors' implementation
    pads with the last frame of the batch, so that results depend on padding.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(factor))

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, T, D)` to `(B, ceil(T / factor), D)`, lengths to ceil(L / factor); values beyond the lengths are
        zero."""
        factor, frames = len(self.weight), hidden.shape[1]
        padding = -frames % factor
        valid = valid_mask(lengths, frames + padding)
        hidden = hidden.masked_fill(~valid[:, :frames, None], 0.0)
        shares = self.weight.softmax(0) * valid.unflatten(1, (-1, factor))
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        parts = F.pad(hidden, (0, 0, 0, padding)).unflatten(1, (-1, factor))
        return (parts * shares[..., None]).sum(2), (lengths + factor - 1) // factor
