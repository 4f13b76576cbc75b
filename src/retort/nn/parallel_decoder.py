"""The parallel decoder over fired embeddings: Paraformer's (Gao et al., Interspeech 2022, arXiv 2206.08317, section 2).

Differences: positions are rotary, layers are pre-norm, and the embeddings of shown tokens are rows of the
output layer (an option of the authors' code, FunASR, `share_embedding`), so that the model has no parameters
that only training needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import number
from retort.config.student import DecoderConfig, DecoderSizes, EncoderConfig
from retort.nn.attention import CrossAttention, RotaryAttention
from retort.nn.conformer import FeedForward
from retort.nn.cpu_kernels import Dropout
from retort.nn.masks import attention_mask


@dataclass
class ParallelConfig(DecoderSizes, DecoderConfig):
    """Configuration of :class:`ParallelDecoder`."""

    kind: str = "parallel"
    """Kind of the decoder."""
    cross_attention: bool = True
    """Whether the decoder also attends to the encoder's output."""
    glancing: float = number(0.75, 0, 1)
    """In training (glancing sampling): number of reference tokens given as input, as a share of the tokens that the first
    pass gets wrong."""

    @property
    def more_prose(self) -> str:
        return ", parallel"


def make_parallel(config: ParallelConfig, vocabulary: int, encoder: EncoderConfig) -> ParallelDecoder:
    """The decoder over the fired embeddings of an encoder."""
    return ParallelDecoder(config, vocabulary, encoder.dim)


class ParallelLayer(nn.Module):
    """Pre-norm bidirectional self-attention, optional cross-attention, and feed-forward with SiLU.

    Args:
        config: sizes of the network.
        memory_dim: width of the encoder output.
    """

    def __init__(self, config: ParallelConfig, memory_dim: int) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = RotaryAttention(dim, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(dim) if config.cross_attention else None
        self.cross = (
            CrossAttention(dim, config.heads, config.dropout, memory_dim) if config.cross_attention else None
        )
        self.feedforward = FeedForward(dim, config.feedforward, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, lengths: Tensor, memory: Tensor | None, memory_lengths: Tensor | None
    ) -> Tensor:
        """`hidden (B, U, dim)`; values beyond the lengths are undefined."""
        mask = attention_mask(lengths, hidden.shape[1])
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), mask))
        if self.cross is not None and self.cross_norm is not None:
            if memory is None or memory_lengths is None:
                raise ValueError("a parallel decoder with cross-attention requires the encoder output")
            context = attention_mask(memory_lengths, memory.shape[1])
            hidden = hidden + self.dropout(
                self.cross(self.cross_norm(hidden), self.cross.memory(memory), context)
            )
        result: Tensor = hidden + self.feedforward(hidden)
        return result


@dataclass(frozen=True)
class ParallelState:
    """Precomputed logits of all positions, and the current position.

    Attributes:
        logits: `(B, U, V)`, shared by all hypotheses.
        rows: `(M,)` int64, the utterance of each hypothesis.
        steps: number of tokens so far.
    """

    logits: Tensor
    rows: Tensor
    steps: int = 0

    def select(self, rows: Tensor) -> ParallelState:
        """The state of the given rows `(M,)` int64, in that order; rows may repeat."""
        return replace(self, rows=self.rows[rows])


class ParallelDecoder(nn.Module):
    """All tokens in one pass, independently: no token is an input, except those shown in training.

    Args:
        config: sizes of the network.
        vocabulary: number of ids, including special ones.
        acoustic_dim: width of the fired embeddings and of the encoder output.
    """

    def __init__(self, config: ParallelConfig, vocabulary: int, acoustic_dim: int) -> None:
        super().__init__()
        dim = config.dim
        self.scale = math.sqrt(dim)
        self.input = nn.Linear(acoustic_dim, dim)
        self.dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(ParallelLayer(config, acoustic_dim) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.vocabulary = nn.Linear(dim, vocabulary, bias=False)
        nn.init.normal_(self.vocabulary.weight, std=dim**-0.5)

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        memory: Tensor | None = None,
        memory_lengths: Tensor | None = None,
        shown: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode all positions of all utterances.

        Args:
            embeddings: `(B, U, acoustic_dim)`, fired by CIF; finite.
            lengths: `(B,)`, number of embeddings.
            memory: `(B, T, acoustic_dim)`, encoder output, zero beyond `memory_lengths (B,)`; used by
                cross-attention only.
            shown: target tokens `(B, U)` int64, and `(B, U)` bool: where they replace the embedding.

        Returns:
            States `(B, U, dim)` before the output layer, and logits `(B, U, V)`; undefined beyond the
            lengths.

        Raises:
            ValueError: cross-attention without a memory.
        """
        hidden = self.input(embeddings)
        if shown is not None:
            tokens, where = shown
            true = self.scale * F.embedding(tokens, self.vocabulary.weight)
            hidden = true.to(hidden.dtype).where(where[..., None], hidden)
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden, lengths, memory, memory_lengths)
        states = self.norm(hidden)
        return states, self.vocabulary(states)

    def start(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        memory: Tensor | None = None,
        memory_lengths: Tensor | None = None,
    ) -> ParallelState:
        """Initial state of a search over fires; arguments as in :meth:`forward`."""
        _, logits = self(embeddings, lengths, memory, memory_lengths)
        return ParallelState(logits, torch.arange(len(logits), device=logits.device))

    def step(
        self, state: ParallelState, previous_tokens: Tensor, embedding: Tensor
    ) -> tuple[Tensor, ParallelState]:
        """Logits `(M, V)` of the next position, independent of the previous tokens, and the next state."""
        return state.logits[state.rows, state.steps], replace(state, steps=state.steps + 1)
