"""Token prefixes of hypotheses as nodes of a tree, and LM scores cached by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retort.decoding.cif import Scorer
from retort.text.tokenizers import EOS

ROOT = 0
"""Node of the empty prefix."""

NO_NODE, NO_PARENT = -1, -2
"""Placeholders: the node of a missing hypothesis, and the parent of the root or of a missing hypothesis."""


class PrefixTree:
    """Sequences of tokens as nodes; two sequences are equal if and only if their nodes are."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        self._nodes_and_tokens = [(ROOT, EOS)]

    def child(self, node: int, token: int) -> int:
        """Node of the sequence of `node` followed by `token`."""
        found = self._nodes.setdefault((node, token), len(self._nodes_and_tokens))
        if found == len(self._nodes_and_tokens):
            self._nodes_and_tokens.append((node, token))
        return found

    def children(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Like :meth:`child`, for `nodes (M,)` and `tokens (M,)`, int64."""
        found = [self.child(node, token) for node, token in zip(nodes.tolist(), tokens.tolist())]
        return torch.tensor(found, dtype=torch.int64, device=nodes.device)

    def parent(self, node: int) -> tuple[int, int]:
        """Parent node and last token; for the root, the root itself and EOS."""
        return self._nodes_and_tokens[node]

    def tokens(self, node: int) -> list[int]:
        """The token sequence of a node."""
        tokens = []
        while node != ROOT:
            node, token = self._nodes_and_tokens[node]
            tokens.append(token)
        return tokens[::-1]


class ConcatenableScorer(Scorer, Protocol):
    """A scorer whose states can be concatenated."""

    def join(self, states: Sequence[Any]) -> Any:
        """Concatenate states that have all read the same number of tokens."""


@dataclass(frozen=True)
class _Cached:
    """Scores `(V,)` after a prefix of `length` tokens, and the scorer's state, which is row `row` of a
    batched state."""

    scores: Tensor
    state: Any
    row: int
    length: int


class LmScores:
    """Cached scores of a language model for the prefixes of a search.

    Every prefix is scored once; new prefixes of the same length are scored in one batch.

    Args:
        scorer: the language model with its weight.
        device: device of the scorer.
    """

    def __init__(self, scorer: ConcatenableScorer, device: torch.device) -> None:
        self.scorer, self.device = scorer, device
        scores, state = scorer.step(scorer.start(1, device), torch.tensor([EOS], device=device))
        self._cached = {ROOT: _Cached(scores[0], state, 0, 0)}

    def after(self, nodes: Sequence[int], tree: PrefixTree) -> Tensor:
        """Scores `(M, V)` of each next token after each node.

        The cache keeps only `nodes`: each of them, or its parent, must have been among the nodes of the
        previous call.
        """
        missing: dict[int, list[int]] = defaultdict(list)
        for node in dict.fromkeys(nodes):
            if node not in self._cached:
                missing[self._cached[tree.parent(node)[0]].length].append(node)
        cached = dict(self._cached)
        for length, group in missing.items():
            cached |= self._step(length, group, tree)
        self._cached = {node: cached[node] for node in nodes}
        return torch.stack([self._cached[node].scores for node in nodes])

    def _step(self, length: int, nodes: Sequence[int], tree: PrefixTree) -> dict[int, _Cached]:
        """Cache entries of nodes whose parents have `length` tokens."""
        together: dict[int, list[int]] = defaultdict(list)  # by the batched state of the parents
        for node in nodes:
            together[id(self._cached[tree.parent(node)[0]].state)].append(node)
        states = []
        for group in together.values():
            before = [self._cached[tree.parent(node)[0]] for node in group]
            rows = torch.tensor([each.row for each in before], device=self.device)
            states.append(self.scorer.select(before[0].state, rows))
        nodes = [node for group in together.values() for node in group]
        tokens = torch.tensor([tree.parent(node)[1] for node in nodes], device=self.device)
        scores, state = self.scorer.step(states[0] if len(states) == 1 else self.scorer.join(states), tokens)
        return {node: _Cached(scores[row], state, row, length + 1) for row, node in enumerate(nodes)}

    def after_all(self, nodes: Tensor, tree: PrefixTree) -> Tensor:
        """Like :meth:`after` for `nodes (B, N)`: `(B, N, V)`; the rows of missing hypotheses have arbitrary scores."""
        listed = nodes.flatten().tolist()
        any_node = next(node for node in listed if node != NO_NODE)
        cached = self.after([any_node if node == NO_NODE else node for node in listed], tree)
        return cached.view(*nodes.shape, -1)
