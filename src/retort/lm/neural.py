"""Neural causal language models: Transformer and LSTM."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.config import ModelConfig
from retort.lm.masked import pad_rows
from retort.nn.cpu_kernels import Dropout
from retort.nn.decoder import CausalLayer
from retort.nn.positions import sinusoids
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, PAD, Tokenizer

State = list[Tensor]
"""State of a network: tensors whose first axis is the sentence."""


class CausalNetwork(nn.Module, ABC):
    """Base class of networks from tokens to logits of the next token; input and output share the embedding.

    Args:
        config: sizes of the network.
        vocabulary: number of ids, including special ones.
    """

    barred: Tensor

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.scale = math.sqrt(config.dim)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.register_buffer("barred", torch.zeros(vocabulary, dtype=torch.bool), persistent=False)
        self.barred[BARRED] = True

    def forward(self, previous: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits `(B, N, V)` after each of `previous (B, N)`, which starts with EOS, and the state after the last.

        With a state, from :meth:`start` or the previous call, N is 1.
        """
        hidden, state = self._read(self.scale * self.embedding(previous), state)
        logits = F.linear(self.dropout(self.norm(hidden)), self.embedding.weight)
        return logits.masked_fill(self.barred, IMPOSSIBLE), state

    @abstractmethod
    def start(self, rows: int) -> State:
        """The state of `rows` sentences before their first EOS."""

    @abstractmethod
    def _read(self, embedded: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Hidden `(B, N, dim)` of embedded tokens `(B, N, dim)`."""


class CausalTransformer(CausalNetwork):
    """Pre-norm layers with sinusoidal positions; keys and values are cached."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        layers = [
            CausalLayer(config.dim, config.heads, config.feedforward, config.dropout)
            for _ in range(config.layers)
        ]
        for layer in layers:
            layer.dropout = 0.0  # no attention dropout, so that a fused kernel is used
        self.layers = nn.ModuleList(layers)

    def start(self, rows: int) -> State:
        heads, dim = self.config.heads, self.config.dim
        nothing = self.embedding.weight.new_zeros(rows, heads, 0, dim // heads)
        return [nothing] * (2 * len(self.layers))

    def _read(self, embedded: Tensor, state: State | None) -> tuple[Tensor, State]:
        before = state[0].shape[2] if state else 0
        positions = torch.arange(before, before + embedded.shape[1], device=embedded.device)
        hidden = self.dropout(embedded + sinusoids(positions, embedded.shape[-1]).to(embedded.dtype))
        after: State = []
        for index, layer in enumerate(self.layers):
            past = (state[2 * index], state[2 * index + 1]) if state else None
            hidden, keys_values = layer(hidden, past)
            after += keys_values
        return hidden, after


class CausalLstm(CausalNetwork):
    """LSTM layers of the width of the embedding."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)

    def start(self, rows: int) -> State:
        nothing = self.embedding.weight.new_zeros(rows, self.config.layers, self.config.dim)
        return [nothing] * 2

    def _read(self, embedded: Tensor, state: State | None) -> tuple[Tensor, State]:
        past = tuple(each.transpose(0, 1).contiguous() for each in state) if state else None
        hidden, after = self.lstm(self.dropout(embedded), past)
        return hidden, [each.transpose(0, 1) for each in after]


NETWORKS: dict[str, type[CausalTransformer] | type[CausalLstm]] = {
    "transformer": CausalTransformer,
    "lstm": CausalLstm,
}


@dataclass(frozen=True)
class CausalBatch:
    """Sentences in which every token is predicted from the previous ones.

    Attributes:
        previous: `(B, N)` int64, EOS first.
        mask: `(B, N)`, true for what is not padding.
        targets: `(M,)`, targets of the M positions that are not padding, row by row.
    """

    previous: Tensor
    mask: Tensor
    targets: Tensor

    @staticmethod
    def of(rows: Sequence[NDArray[np.int64]]) -> CausalBatch:
        """A batch of rows `EOS tokens EOS`."""
        previous, mask = pad_rows([row[:-1] for row in rows], PAD)
        return CausalBatch(previous, mask, torch.from_numpy(np.concatenate([row[1:] for row in rows])))

    def to(self, device: torch.device) -> CausalBatch:
        """The batch with its tensors on `device`."""
        return CausalBatch(self.previous.to(device), self.mask.to(device), self.targets.to(device))


class NeuralLM:
    """A :class:`retort.lm.causal.CausalLM` with a neural network.

    Args:
        network: the network; it is set to evaluation mode.
        tokenizer: tokenizer with the network's number of ids.
        normalise: normaliser of the training text.
        pieces: maximum number of tokens per forward pass of :meth:`score`, including padding.
    """

    def __init__(
        self, network: CausalNetwork, tokenizer: Tokenizer, normalise: Normaliser, pieces: int = 8192
    ) -> None:
        self.network = network.eval()
        self.tokenizer, self.symbols, self.normalise = tokenizer, tokenizer.symbols, normalise
        self.pieces = pieces
        self.parameters = sum(each.numel() for each in network.parameters())

    def start(self, rows: int, device: torch.device) -> State:
        return self.network.to(device).start(rows)

    @torch.no_grad()
    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, State]:
        logits, state = self.network(previous[:, None], state)
        return logits[:, 0].float().log_softmax(-1), state

    def select(self, state: Any, rows: Tensor) -> State:
        return [each[rows] for each in state]

    def join(self, states: Sequence[State]) -> State:
        return [torch.cat(parts) for parts in zip(*states)]

    @torch.no_grad()
    def distributions(self, previous: Tensor) -> Tensor:
        log_probs: Tensor = self.network(previous)[0].float().log_softmax(-1)
        return log_probs

    @torch.no_grad()
    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        device = self.network.embedding.weight.device
        rows = [np.array([EOS, *each, EOS], np.int64) for each in sentences]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        results: dict[int, Tensor] = {}
        while order:
            count = max(self.pieces // len(rows[order[0]]), 1)
            chosen, order = order[:count], order[count:]
            batch = CausalBatch.of([rows[index] for index in chosen]).to(device)
            log_probs = self.network(batch.previous)[0][batch.mask].float().log_softmax(-1)
            target_log_probs = log_probs.gather(-1, batch.targets[:, None])[:, 0].cpu()
            results.update(zip(chosen, target_log_probs.split([len(rows[index]) - 1 for index in chosen])))
        return [results[index] for index in range(len(rows))]
