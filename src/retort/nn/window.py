"""Attention of tokens to the encoder frames around their fires."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class FrameMemory:
    """Encoder frames as keys and values, one copy for all hypotheses of an utterance.

    Attributes:
        keys: `(B, T, dim)`.
        values: `(B, T, dim)`.
        lengths: `(B,)` int64, valid frames.
        places: `(B, U)` int64, the frame in which each token was fired.
        rows: `(M,)` int64, the utterance of each hypothesis.
        ends: `(B, U)` int64, the frame at which the context of each token ends, exclusive; None for that of the
            utterance.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    places: Tensor
    rows: Tensor
    ends: Tensor | None = None

    def select(self, rows: Tensor) -> FrameMemory:
        """The frames of the hypotheses `rows (K,)` int64."""
        return replace(self, rows=self.rows[rows])


def fire_frames(fire_times: Tensor, lengths: Tensor) -> Tensor:
    """Encoder frames `(B, U)` int64 in which tokens were complete, from `fire_times (B, U)` in frames."""
    return (fire_times.ceil().long() - 1).clamp(min=0).minimum((lengths - 1).clamp(min=0)[:, None])


class WindowAttention(nn.Module):
    """Multi-head attention over `2 window + 1` frames around a token's fire, with a learned bias for each distance.

    Args:
        dim: width of the queries and the output.
        source_dim: width of the encoder frames.
        heads: must divide `dim`.
        window: number of frames on each side.
    """

    def __init__(self, dim: int, source_dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(source_dim, dim)
        self.value = nn.Linear(source_dim, dim)
        self.output = nn.Linear(dim, dim)
        self.distances = nn.Parameter(torch.zeros(heads, 2 * window + 1))

    def remember(
        self, hidden: Tensor, lengths: Tensor, places: Tensor, ends: Tensor | None = None
    ) -> FrameMemory:
        """Keys and values of `hidden (B, T, source_dim)`; `places (B, U)` are the frames of the tokens, whose context
        ends at `ends (B, U)`."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return FrameMemory(self.key(hidden), self.value(hidden), lengths, places, rows, ends)

    def forward(self, states: Tensor, memory: FrameMemory, first: int = 0) -> Tensor:
        """Attention output of `states (M, N, dim)` of the tokens `first` to `first + N`, of the same shape.

        Frames beyond the last one are masked; the result is zero for an utterance without frames.
        """
        rows = memory.rows[:, None, None]
        own = slice(first, first + states.shape[1])
        places = memory.places[memory.rows, own, None]
        offsets = torch.arange(-self.window, self.window + 1, device=states.device)
        frames = places + offsets
        valid = (frames >= 0) & (frames < memory.lengths[memory.rows][:, None, None])
        if memory.ends is not None:
            valid &= frames < memory.ends[memory.rows, own, None]
        frames = frames.clamp(0, max(memory.keys.shape[1] - 1, 0))
        keys, values = self._split(memory.keys[rows, frames]), self._split(memory.values[rows, frames])
        query = self._split(self.query(self.norm(states))).to(keys.dtype)
        scores = torch.einsum("mnhd,mnwhd->mnhw", query, keys)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * query.shape[-1] ** -0.5
        scores = (scores + self.distances).masked_fill(~valid[:, :, None], -1e30)
        shares = F.softmax(scores, dim=-1).masked_fill(~valid[:, :, None], 0.0).to(values.dtype)
        attended = torch.einsum("mnhw,mnwhd->mnhd", shares, values)
        result: Tensor = self.output(attended.flatten(2))
        return result

    def _split(self, values: Tensor) -> Tensor:
        """`(..., dim)` to `(..., heads, dim / heads)`."""
        return values.unflatten(-1, (self.heads, values.shape[-1] // self.heads))
