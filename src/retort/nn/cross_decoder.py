"""The autoregressive decoder with cross-attention to the encoder's frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retort.config.ranges import number
from retort.config.student import DecoderSizes
from retort.nn.attention import CrossAttention, Memory
from retort.nn.cpu_kernels import Dropout
from retort.nn.decoder import HistoryLayer
from retort.nn.masks import attention_mask
from retort.nn.positions import sinusoids


class CrossLayer(HistoryLayer):
    """Pre-norm causal self-attention, cross-attention and feed-forward."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, source_dim: int) -> None:
        super().__init__(dim, heads, feedforward, dropout)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads, dropout, source_dim)

    def forward(
        self, hidden: Tensor, memory: Memory, mask: Tensor, past: Memory | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        """The new hidden `(M, N, dim)`, the context vectors `(M, N, dim)`, and `past` for the next step.

        Arguments as :meth:`HistoryLayer.look_back` and :meth:`CrossAttention.forward` have them.
        """
        hidden, keys_values = self.look_back(hidden, past)
        context = self.cross(self.cross_norm(hidden), memory, mask)
        return self.feed(hidden + self.residual_dropout(context)), context, keys_values


@dataclass
class CrossDecoderConfig(DecoderSizes):
    """Configuration of :class:`CrossDecoder`."""

    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the previous tokens that are replaced by the unknown token in training, so that the decoder relies on
    the acoustics rather than on a history that has errors in decoding."""


@dataclass
class CrossState:
    """State of the decoder between steps, for M hypotheses of B utterances.

    Attributes:
        memory: keys and values of the frames of B utterances, for each layer.
        mask: `(B, 1, 1, T)`, valid frames.
        past: keys and values of the P tokens so far of M hypotheses, for each layer.
        steps: number of tokens so far, P.
    """

    memory: list[Memory]
    mask: Tensor
    past: list[Memory]
    steps: int = 0

    def select(self, rows: Tensor) -> CrossState:
        """The state of the given rows `(K,)` int64, in that order; rows may repeat.

        The hypotheses of an utterance are contiguous before and after, and their number is the same for all
        utterances.
        """
        past = [(key[rows], value[rows]) for key, value in self.past]
        return CrossState(self.memory, self.mask, past, self.steps)


class Decoded(NamedTuple):
    """Outputs of all steps.

    Attributes:
        states: `(B, U, dim)`, before the output layer.
        logits: `(B, U, V)`.
        contexts: `(B, U, dim)`, context vectors of the last layer's cross-attention.
    """

    states: Tensor
    logits: Tensor
    contexts: Tensor


class CrossDecoder(nn.Module):
    """Autoregressive Transformer decoder (Vaswani et al. 2017), pre-norm.

    Args:
        config: sizes of the network.
        vocabulary: number of ids, including special ones.
        source_dim: width of the frames.
    """

    def __init__(self, config: DecoderSizes, vocabulary: int, source_dim: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.scale = math.sqrt(dim)
        self.dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            CrossLayer(dim, config.heads, config.feedforward, config.dropout, source_dim)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.vocabulary = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, previous_tokens: Tensor, source: Tensor, lengths: Tensor) -> Decoded:
        """All steps at once, with teacher forcing.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            source: `(B, T, source_dim)`, frames.
            lengths: `(B,)`, number of valid frames.
        """
        positions = torch.arange(previous_tokens.shape[1], device=previous_tokens.device)
        hidden = self._input(previous_tokens, positions)
        mask, contexts = attention_mask(lengths, source.shape[1]), hidden
        for layer, memory in zip(self.layers, self._memory(source)):
            hidden, contexts, _ = layer(hidden, memory, mask)
        states = self.norm(hidden)
        return Decoded(states, self.vocabulary(states), contexts)

    def start(self, source: Tensor, lengths: Tensor) -> CrossState:
        """The state before the first token; arguments as in :meth:`forward`."""
        return CrossState(self._memory(source), attention_mask(lengths, source.shape[1]), [])

    def step(self, state: CrossState, previous_tokens: Tensor) -> tuple[Tensor, CrossState]:
        """Decode one token.

        Args:
            state: from :meth:`start` or the previous step.
            previous_tokens: `(M,)` int64.

        Returns:
            Logits `(M, V)` and the next state.
        """
        position = torch.tensor([state.steps], device=previous_tokens.device)
        hidden = self._input(previous_tokens[:, None], position)
        past = []
        for index, layer in enumerate(self.layers):
            before = state.past[index] if state.past else None
            hidden, _, keys_values = layer(hidden, state.memory[index], state.mask, before)
            past.append(keys_values)
        logits = self.vocabulary(self.norm(hidden))
        return logits[:, 0], CrossState(state.memory, state.mask, past, state.steps + 1)

    def _memory(self, source: Tensor) -> list[Memory]:
        return [layer.cross.memory(source) for layer in self.layers if isinstance(layer, CrossLayer)]

    def _input(self, tokens: Tensor, positions: Tensor) -> Tensor:
        hidden = self.scale * self.embedding(tokens)
        result: Tensor = self.dropout(hidden + sinusoids(positions, hidden.shape[-1]).to(hidden.dtype))
        return result
