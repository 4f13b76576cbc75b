"""N-gram language models: a trie with batched look-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.lm.masked import pad_rows
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, PAD, Tokenizer

_AT_ONCE = 4096
"""Sentences scored together."""


@dataclass(frozen=True)
class NgramTable:
    """N-grams with their probabilities.

    Node 0 is the empty history, node 1 + i is n-gram i. EOS as the first word of a longer n-gram is the start
    of a sentence, as the last word the end; the unigram has the probability of the end and the back-off of
    the start.

    Attributes:
        vocabulary: number of ids, V.
        counts: number of n-grams of each order, V for the first: id i is n-gram i.
        keys: `(K,)` int64, for each n-gram the node of its history times V plus its last word; ascending, so
            shorter n-grams come first and those of one history are contiguous.
        log_probs: `(K,)` float32, natural log-probability of the last word after the history.
        backoffs: `(K,)` float32, natural log back-off weight of the n-gram as a history.
    """

    vocabulary: int
    counts: list[int]
    keys: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    backoffs: NDArray[np.float32]

    @property
    def order(self) -> int:
        """Order of the longest n-grams."""
        return len(self.counts)


def check_table(table: NgramTable) -> None:
    """Check the arrays of a table that was read from a file, so that no look-up is out of range.

    Raises:
        ValueError: they are inconsistent.
    """
    size = sum(table.counts)
    arrays = (table.keys, table.log_probs, table.backoffs)
    if (
        table.vocabulary < 1
        or not table.counts
        or min(table.counts) < 0
        or table.counts[0] != table.vocabulary
    ):
        raise ValueError(f"its counts are {table.counts}")
    if any(each.shape != (size,) for each in arrays) or table.keys.dtype != np.int64:
        raise ValueError("its arrays are not of one length")
    nodes = table.keys // table.vocabulary
    if (np.diff(table.keys) <= 0).any() or (nodes < 0).any() or (nodes > np.arange(size)).any():
        raise ValueError("its n-grams are not in order")


class NgramLM:
    """A :class:`retort.lm.causal.CausalLM` of n-grams.

    A state `(M,)` int64 is the node of the longest known history.

    Args:
        table: n-grams of the tokenizer's ids.
        tokenizer: tokenizer of the tokens.
        normalise: normaliser of the training text.
    """

    def __init__(self, table: NgramTable, tokenizer: Tokenizer, normalise: Normaliser) -> None:
        self.table = table
        self.tokenizer, self.symbols, self.normalise = tokenizer, tokenizer.symbols, normalise
        self.parameters = len(table.log_probs) + len(table.backoffs) - table.counts[-1]
        self._keys = torch.from_numpy(table.keys)
        self._log_probs = torch.from_numpy(table.log_probs)
        self._backoffs = torch.cat((torch.zeros(1), torch.from_numpy(table.backoffs)))
        histories = self._keys // table.vocabulary
        nodes = torch.arange(len(self._keys) + 1)
        self._first = torch.searchsorted(histories, nodes)
        self._followers = torch.searchsorted(histories, nodes, right=True) - self._first
        self._followers[0] = 0  # the unigrams are added in one operation
        self._shorter = self._shortened(histories)
        # N-grams of the highest order are not histories.
        longest = len(nodes) - table.counts[-1]
        self._history = torch.where(nodes < longest, nodes, self._shorter)

    def _shortened(self, histories: Tensor) -> Tensor:
        """The node of the longest proper suffix of each node."""
        shorter = torch.zeros(len(self._keys) + 1, dtype=torch.int64)
        self._shorter = shorter
        stop = self.table.counts[0]
        for count in self.table.counts[1:]:
            start, stop = stop, stop + count
            words = self._keys[start:stop] % self.table.vocabulary
            shorter[start + 1 : stop + 1], _ = self._descend(shorter[histories[start:stop]], words)
        return shorter

    def start(self, rows: int, device: torch.device) -> Tensor:
        if self._keys.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Tensor]:
        state = self._history[self._descend(state, previous)[0]]
        chain = [state]
        for _ in range(self.table.order - 2):
            chain.append(self._shorter[chain[-1]])
        rows = self._log_probs[: self.table.vocabulary].repeat(len(state), 1)
        for history in reversed(chain):
            rows += self._backoffs[history][:, None]
            row, number = self._followers_of(history)
            rows[row, self._keys[number] % self.table.vocabulary] = self._log_probs[number]
        return rows, state

    def select(self, state: Any, rows: Tensor) -> Tensor:
        selected: Tensor = state[rows]
        return selected

    def join(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(states))

    def distributions(self, previous: Tensor) -> Tensor:
        state, columns = self.start(len(previous), self._keys.device), []
        for each in previous.T:
            log_probs, state = self.step(state, each)
            columns.append(log_probs)
        return torch.stack(columns, 1)

    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]), reverse=True)
        results: dict[int, Tensor] = {}
        while order:
            chosen, order = order[:_AT_ONCE], order[_AT_ONCE:]
            rows = [np.array([EOS, *sentences[index], EOS], np.int64) for index in chosen]
            ids, _ = pad_rows(rows, PAD)
            words = ids.to(self._keys.device).T
            state, columns = self._history[1 + words[0]], []
            for each in words[1:]:
                node, log_probs = self._descend(state, each)
                state = self._history[node]
                columns.append(log_probs)
            by_row = torch.stack(columns, 1).cpu()
            results.update(
                (index, log_probs[: len(row) - 1]) for index, log_probs, row in zip(chosen, by_row, rows)
            )
        return [results[index] for index in range(len(sentences))]

    def _descend(self, state: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The longest n-grams `(M,)` that end in `words (M,)` after `state (M,)`, and the words' log-probabilities."""
        backed = torch.zeros(len(state), device=state.device)
        for _ in range(self.table.order - 1):
            missing = self._child(state, words) == 0
            backed = backed + self._backoffs[state] * missing
            state = torch.where(missing, self._shorter[state], state)
        found = self._child(state, words)
        return found, backed + self._log_probs[found - 1]

    def _child(self, state: Tensor, words: Tensor) -> Tensor:
        """Nodes of `state` followed by `words`; 0 if there is none."""
        wanted = state * self.table.vocabulary + words
        at = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[at] == wanted, at + 1, 0)

    def _followers_of(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """All n-grams of the histories `(M,)`: the index of the history, and the number of the n-gram."""
        counts = self._followers[history]
        rows = torch.arange(len(history), device=history.device).repeat_interleave(counts)
        before = (counts.cumsum(0) - counts)[rows]
        return rows, self._first[history][rows] + torch.arange(len(rows), device=history.device) - before
