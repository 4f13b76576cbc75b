"""What hypotheses have said that do not speak at the same time, and what a scorer makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retort.decoding.beam import Scorer
from retort.text.tokenizers import EOS

ROOT = 0
"""The node of those that have said nothing."""


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

    def way(self, node: int) -> tuple[int, int]:
        """The node before and the token that led from there; the root has itself and EOS."""
        return self._ways[node]


@dataclass(frozen=True)
class _Known:
    """What a scorer says behind a node, `opinion (V,)`, and its state there: a row of a state of several."""

    opinion: Tensor
    state: Any
    row: int


class Opinions:
    """A scorer (:class:`retort.decoding.beam.Scorer`) that is asked of every sequence once.

    States of sequences that were stepped together stay together, for only those of one length may be in one step.

    Args:
        scorer: what is asked.
        device: where it computes.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        self.scorer, self.device = scorer, device
        opinion, state = scorer.step(scorer.start(1, device), torch.tensor([EOS], device=device))
        self._known = {ROOT: _Known(opinion[0], state, 0)}

    def behind(self, nodes: Sequence[int], tree: SaidTree) -> Tensor:
        """What the scorer adds to each token behind each node, `(M, V)`.

        What is not among `nodes` is forgotten: each of them, or the node before it, was among those of the call before.
        """
        fresh: dict[int, list[int]] = {}
        for node in dict.fromkeys(nodes):
            if node not in self._known:
                fresh.setdefault(id(self._known[tree.way(node)[0]].state), []).append(node)
        made: dict[int, _Known] = {}
        for group in fresh.values():
            before = [self._known[tree.way(node)[0]] for node in group]
            rows = torch.tensor([each.row for each in before], device=self.device)
            tokens = torch.tensor([tree.way(node)[1] for node in group], device=self.device)
            opinion, state = self.scorer.step(self.scorer.select(before[0].state, rows), tokens)
            made |= {node: _Known(opinion[row], state, row) for row, node in enumerate(group)}
        known = self._known | made
        self._known = {node: known[node] for node in nodes}
        return torch.stack([self._known[node].opinion for node in nodes])
