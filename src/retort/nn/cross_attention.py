"""Attention from one sequence to another."""

from __future__ import annotations

from torch import Tensor, nn

from retort.nn.attention import SelfAttention

Memory = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `(B, heads, N, dim / heads)`."""


class CrossAttention(SelfAttention):
    """Multi-head attention to a memory (Vaswani et al. 2017, section 3.2.3), without positions of its own.

    Args:
        dim: of what asks, and of the output.
        heads: must divide `dim`.
        dropout: on the attention weights.
        source_dim: of what is asked; by default `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, source_dim: int | None = None) -> None:
        super().__init__(dim, heads, dropout)
        if source_dim is not None and source_dim != dim:
            self.key = nn.Linear(source_dim, dim)
            self.value = nn.Linear(source_dim, dim)

    def memory(self, source: Tensor, keys: Tensor | None = None) -> Memory:
        """What `source (B, T, source_dim)` is asked for.

        Args:
            keys: like `source`, if the keys are made of something else than the values.
        """
        return self.split(self.key(source if keys is None else keys)), self.split(self.value(source))

    def forward(self, hidden: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """Context `(M, N, dim)` of `hidden (M, N, dim)`.

        M is B or a multiple of it: several hypotheses of an utterance stand together and look at the same frames,
        of which there is one copy.

        Args:
            memory: of B utterances.
            mask: `(B, 1, 1, T)`, true for frames that may be attended to.
        """
        asked = len(memory[0])
        together = hidden if len(hidden) == asked else hidden.reshape(asked, -1, hidden.shape[-1])
        return self.attend(self.split(self.query(together)), *memory, mask).view(hidden.shape)
