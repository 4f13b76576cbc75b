"""The autoregressive decoder that looks for itself what it needs of the encoder's frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retort.config.student import DecoderConfig
from retort.nn.attention import CrossAttention, Memory
from retort.nn.cpu_kernels import Dropout
from retort.nn.decoder import HistoryLayer
from retort.nn.masks import attention_mask
from retort.nn.positions import sinusoids


class CrossLayer(HistoryLayer):
    """Causal self-attention, attention to the frames, feed-forward; each with its norm before it."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, source_dim: int) -> None:
        super().__init__(dim, heads, feedforward, dropout)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads, dropout, source_dim)

    def forward(
        self, hidden: Tensor, memory: Memory, mask: Tensor, past: Memory | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        """The new hidden `(M, N, dim)`, the context vectors `(M, N, dim)`, and what `past` is of the next step.

        Arguments as :meth:`HistoryLayer.look_back` and :meth:`CrossAttention.forward` have them.
        """
        hidden, keys_values = self.look_back(hidden, past)
        context = self.cross(self.cross_norm(hidden), memory, mask)
        return self.feed(hidden + self.residual_dropout(context)), context, keys_values


@dataclass
class CrossState:
    """What the decoder remembers between steps, of M hypotheses of B utterances.

    Attributes:
        memory: of each layer, of the frames of B utterances.
        mask: `(B, 1, 1, T)`, their valid frames.
        past: of each layer, of the P tokens so far of M hypotheses.
        steps: P.
    """

    memory: list[Memory]
    mask: Tensor
    past: list[Memory]
    steps: int = 0

    def select(self, rows: Tensor) -> CrossState:
        """The state of the given rows `(K,)` int64, in that order, repeated if need be.

        The hypotheses of an utterance stand together before and behind, as many of each.
        """
        past = [(key[rows], value[rows]) for key, value in self.past]
        return CrossState(self.memory, self.mask, past, self.steps)


class Decoded(NamedTuple):
    """All steps at once.

    Attributes:
        states: `(B, U, dim)`, before the vocabulary.
        logits: `(B, U, V)`.
        contexts: `(B, U, dim)`, what the last layer found in the frames for each token.
    """

    states: Tensor
    logits: Tensor
    contexts: Tensor


class CrossDecoder(nn.Module):
    """Token by token, with attention to the encoder's frames (Vaswani et al. 2017, with the norms first).

    Args:
        config: sizes.
        vocabulary: number of ids, the special ones counted.
        source_dim: of the frames.
    """

    def __init__(self, config: DecoderConfig, vocabulary: int, source_dim: int) -> None:
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
        """All steps at once, with the history given.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            source: `(B, T, source_dim)`, frames.
            lengths: `(B,)`, how many of them are valid.
        """
        positions = torch.arange(previous_tokens.shape[1], device=previous_tokens.device)
        hidden = self._input(previous_tokens, positions)
        mask, contexts = attention_mask(lengths, source.shape[1]), hidden
        for layer, memory in zip(self.layers, self._memory(source)):
            hidden, contexts, _ = layer(hidden, memory, mask)
        states = self.norm(hidden)
        return Decoded(states, self.vocabulary(states), contexts)

    def start(self, source: Tensor, lengths: Tensor) -> CrossState:
        """The state before the first token; arguments as :meth:`forward` has them."""
        return CrossState(self._memory(source), attention_mask(lengths, source.shape[1]), [])

    def step(self, state: CrossState, previous_tokens: Tensor) -> tuple[Tensor, CrossState]:
        """One token further.

        Args:
            state: from :meth:`start` or the step before.
            previous_tokens: `(M,)` int64.

        Returns:
            logits `(M, V)` and the next state.
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
