"""What hypotheses have said that do not speak at the same time, and what a scorer makes of it."""

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
"""The node of those that have said nothing."""

NO_NODE, NO_PARENT = -1, -2
"""What stands for the node of something that is no hypothesis, and for the node before it or before the root."""


class PrefixTree:
    """Sequences of tokens as nodes: two are equal if and only if their nodes are."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        self._nodes_and_tokens = [(ROOT, EOS)]

    def child(self, node: int, token: int) -> int:
        """The node of a sequence and one token more."""
        found = self._nodes.setdefault((node, token), len(self._nodes_and_tokens))
        if found == len(self._nodes_and_tokens):
            self._nodes_and_tokens.append((node, token))
        return found

    def children(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The same for `nodes (M,)` and `tokens (M,)`, int64."""
        found = [self.child(node, token) for node, token in zip(nodes.tolist(), tokens.tolist())]
        return torch.tensor(found, dtype=torch.int64, device=nodes.device)

    def parent(self, node: int) -> tuple[int, int]:
        """The node before and the token that led from there; the root has itself and EOS."""
        return self._nodes_and_tokens[node]

    def tokens(self, node: int) -> list[int]:
        """The tokens of a sequence."""
        tokens = []
        while node != ROOT:
            node, token = self._nodes_and_tokens[node]
            tokens.append(token)
        return tokens[::-1]


class Joining(Scorer, Protocol):
    """A scorer that can step hypotheses together which it stepped apart before."""

    def join(self, states: Sequence[Any]) -> Any:
        """The rows of several states, all of which have read equally many tokens, as one."""


@dataclass(frozen=True)
class _Cached:
    """What a scorer says behind a node of `length` tokens, `scores (V,)`, and its state there: a row of a state of
    several."""

    scores: Tensor
    state: Any
    row: int
    length: int


class LmScores:
    """A scorer that is asked of every sequence once, of all fresh ones of a length together.

    Args:
        scorer: what is asked.
        device: where it computes.
    """

    def __init__(self, scorer: Joining, device: torch.device) -> None:
        self.scorer, self.device = scorer, device
        scores, state = scorer.step(scorer.start(1, device), torch.tensor([EOS], device=device))
        self._cached = {ROOT: _Cached(scores[0], state, 0, 0)}

    def after(self, nodes: Sequence[int], tree: PrefixTree) -> Tensor:
        """What the scorer adds to each token behind each node, `(M, V)`.

        What is not among `nodes` is forgotten: each of them, or the node before it, was among those of the call before.
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
        """What is known behind nodes that are one token behind sequences of `length`."""
        together: dict[int, list[int]] = defaultdict(list)  # of what was stepped together before
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
        """The same for `nodes (B, N)`, `(B, N, V)`; behind what is no hypothesis, that behind another."""
        listed = nodes.flatten().tolist()
        any_node = next(node for node in listed if node != NO_NODE)
        cached = self.after([any_node if node == NO_NODE else node for node in listed], tree)
        return cached.view(*nodes.shape, -1)
