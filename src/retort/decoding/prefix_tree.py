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


class SaidTree:
    """Sequences of tokens as nodes: two are equal if and only if their nodes are."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        self._ways = [(ROOT, EOS)]

    def child(self, node: int, token: int) -> int:
        """The node of a sequence and one token more."""
        found = self._nodes.setdefault((node, token), len(self._ways))
        if found == len(self._ways):
            self._ways.append((node, token))
        return found

    def children(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The same for `nodes (M,)` and `tokens (M,)`, int64."""
        found = [self.child(node, token) for node, token in zip(nodes.tolist(), tokens.tolist())]
        return torch.tensor(found, dtype=torch.int64, device=nodes.device)

    def way(self, node: int) -> tuple[int, int]:
        """The node before and the token that led from there; the root has itself and EOS."""
        return self._ways[node]

    def said(self, node: int) -> list[int]:
        """The tokens of a sequence."""
        tokens = []
        while node != ROOT:
            node, token = self._ways[node]
            tokens.append(token)
        return tokens[::-1]


class Joining(Scorer, Protocol):
    """A scorer that can step hypotheses together which it stepped apart before."""

    def join(self, states: Sequence[Any]) -> Any:
        """The rows of several states, all of which have read equally many tokens, as one."""


@dataclass(frozen=True)
class _Known:
    """What a scorer says behind a node of `length` tokens, `opinion (V,)`, and its state there: a row of a state of
    several."""

    opinion: Tensor
    state: Any
    row: int
    length: int


class Opinions:
    """A scorer that is asked of every sequence once, of all fresh ones of a length together.

    Args:
        scorer: what is asked.
        device: where it computes.
    """

    def __init__(self, scorer: Joining, device: torch.device) -> None:
        self.scorer, self.device = scorer, device
        opinion, state = scorer.step(scorer.start(1, device), torch.tensor([EOS], device=device))
        self._known = {ROOT: _Known(opinion[0], state, 0, 0)}

    def behind(self, nodes: Sequence[int], tree: SaidTree) -> Tensor:
        """What the scorer adds to each token behind each node, `(M, V)`.

        What is not among `nodes` is forgotten: each of them, or the node before it, was among those of the call before.
        """
        fresh: dict[int, list[int]] = defaultdict(list)
        for node in dict.fromkeys(nodes):
            if node not in self._known:
                fresh[self._known[tree.way(node)[0]].length].append(node)
        known = dict(self._known)
        for length, group in fresh.items():
            known |= self._step(length, group, tree)
        self._known = {node: known[node] for node in nodes}
        return torch.stack([self._known[node].opinion for node in nodes])

    def _step(self, length: int, nodes: Sequence[int], tree: SaidTree) -> dict[int, _Known]:
        """What is known behind nodes that are one token behind sequences of `length`."""
        together: dict[int, list[int]] = defaultdict(list)  # of what was stepped together before
        for node in nodes:
            together[id(self._known[tree.way(node)[0]].state)].append(node)
        states = []
        for group in together.values():
            before = [self._known[tree.way(node)[0]] for node in group]
            rows = torch.tensor([each.row for each in before], device=self.device)
            states.append(self.scorer.select(before[0].state, rows))
        nodes = [node for group in together.values() for node in group]
        tokens = torch.tensor([tree.way(node)[1] for node in nodes], device=self.device)
        opinion, state = self.scorer.step(states[0] if len(states) == 1 else self.scorer.join(states), tokens)
        return {node: _Known(opinion[row], state, row, length + 1) for row, node in enumerate(nodes)}

    def behind_all(self, nodes: Tensor, tree: SaidTree) -> Tensor:
        """The same for `nodes (B, N)`, `(B, N, V)`; behind what is no hypothesis, that behind another."""
        listed = nodes.flatten().tolist()
        some = next(node for node in listed if node != NO_NODE)
        known = self.behind([some if node == NO_NODE else node for node in listed], tree)
        return known.view(*nodes.shape, -1)
