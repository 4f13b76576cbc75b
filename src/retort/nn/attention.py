"""Self-attention over frames with relative or rotary positions, and cross-attention."""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.chunks import Chunks, with_past
from retort.nn.positions import relative_table, rotary_table, rotate


class SelfAttention(nn.Module):
    """Multi-head self-attention without positions; base class of the classes below.

    Args:
        dim: width of the input and the output.
        heads: must divide `dim`.
        dropout: dropout of the attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def split(self, hidden: Tensor) -> Tensor:
        """`(B, T, dim)` to `(B, heads, T, dim / heads)`."""
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def inputs(self, hidden: Tensor, chunks: Chunks | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Split queries, keys and values of `hidden (B, T, dim)`; in a stream with the cached keys and values."""
        query, key, value = (self.split(part(hidden)) for part in (self.query, self.key, self.value))
        return query, with_past(chunks, self, "key", key), with_past(chunks, self, "value", value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        """Scaled dot-product attention of split heads, joined and projected to `(B, T, dim)`."""
        dropout = self.dropout if self.training else 0.0
        dtype = query.dtype
        # On a CPU the backward pass of the fused kernel takes four times as long in bfloat16 as in float32.
        exact = query.device.type == "cpu" and dtype != torch.float64
        with torch.autocast(query.device.type, enabled=False) if exact else contextlib.nullcontext():
            if exact:
                query, key, value = query.float(), key.float(), value.float()
                mask = mask.float() if mask is not None and mask.is_floating_point() else mask
            attended = F.scaled_dot_product_attention(
                query, key, value, mask, dropout_p=dropout, is_causal=causal
            ).to(dtype)
        projected: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return projected


class RotaryAttention(SelfAttention):
    """Self-attention with rotary positions (Su et al. 2021)."""

    def forward(self, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)`, `mask (B, 1, T or 1, T)` true for keys that may be attended to; in a stream the last
        axis of `mask` includes the cached keys."""
        query, key, value = self.inputs(hidden, chunks)
        cosines, sines = rotary_table(key.shape[2], query.shape[-1], hidden.device)
        last = key.shape[2] - query.shape[2]
        rotated = rotate(query, (cosines[last:], sines[last:]))
        return self.attend(rotated, rotate(key, (cosines, sines)), value, mask)


class RelativeAttention(SelfAttention):
    """Self-attention with relative positions (Dai et al. 2019, Transformer-XL, section 3.3).

    The position projection has no bias; two vectors per head, `content_bias` and `position_bias`, are added to the
    query in the content term and in the position term.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.position = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.empty(heads, dim // heads))
        self.position_bias = nn.Parameter(torch.empty(heads, dim // heads))
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def forward(self, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Arguments as :meth:`RotaryAttention.forward`."""
        query, key, value = self.inputs(hidden, chunks)
        keys = key.shape[2]
        table = relative_table(keys, hidden.shape[2], hidden.device).to(hidden.dtype)
        table = table[: keys + query.shape[2] - 1]
        position = self.split(self.position(table)[None])
        by_distance = (query + self.position_bias[:, None, :]) @ position.transpose(-1, -2)
        bias = distance_to_key(by_distance) / math.sqrt(query.shape[-1])
        bias = bias.masked_fill(~mask, float("-inf"))
        return self.attend((query + self.content_bias[:, None, :]).to(bias.dtype), key, value, bias)


def distance_to_key(by_distance: Tensor) -> Tensor:
    """Convert scores by distance `(B, H, T, S + T - 1)` to scores by key `(B, H, T, S)`: row i starts at T - 1 - i.

    The T queries are the last of the S frames; S = T without cached keys.
    """
    batch, heads, frames, distances = by_distance.shape
    padded = F.pad(by_distance, (1, 0)).view(batch, heads, distances + 1, frames)
    return padded[:, :, 1:].reshape(batch, heads, frames, distances)[..., : distances - frames + 1]


ATTENTIONS: dict[str, type[RotaryAttention] | type[RelativeAttention]] = {
    "rotary": RotaryAttention,
    "relative": RelativeAttention,
}


Memory = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `(B, heads, N, dim / heads)`."""


class CrossAttention(SelfAttention):
    """Multi-head cross-attention to a memory (Vaswani et al. 2017, section 3.2.3), without positions.

    Args:
        dim: width of the queries and of the output.
        heads: must divide `dim`.
        dropout: dropout of the attention weights.
        source_dim: width of the memory; by default `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, source_dim: int | None = None) -> None:
        super().__init__(dim, heads, dropout)
        if source_dim is not None and source_dim != dim:
            self.key = nn.Linear(source_dim, dim)
            self.value = nn.Linear(source_dim, dim)

    def memory(self, source: Tensor, keys: Tensor | None = None) -> Memory:
        """Keys and values of `source (B, T, source_dim)`.

        Args:
            keys: input of the keys, if it differs from that of the values.
        """
        return self.split(self.key(source if keys is None else keys)), self.split(self.value(source))

    def forward(self, hidden: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """Context `(M, N, dim)` of `hidden (M, N, dim)`.

        M is B or a multiple of it: the hypotheses of an utterance are contiguous and share one copy of its frames.

        Args:
            memory: keys and values of B utterances.
            mask: `(B, 1, 1, T)`, true for frames that may be attended to.
        """
        asked = len(memory[0])
        together = hidden if len(hidden) == asked else hidden.reshape(asked, -1, hidden.shape[-1])
        return self.attend(self.split(self.query(together)), *memory, mask).view(hidden.shape)
