"""A language model that follows hypotheses of different lengths."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retort.lm.causal import CausalLM
from retort.text.tokenizers import EOS


@dataclass(frozen=True)
class _Read:
    """What the model remembers of a history: a row of a state of histories that are as long, `length` pieces."""

    state: Any
    row: int
    length: int


class Histories:
    """What a causal language model says behind N histories of each of B utterances, which grow one by one.

    Histories that are as long are read together; nothing is read twice as long as it is kept.

    Args:
        lm: over the student's pieces.
        batch: B; each utterance begins with one empty history.
        device: where all of it computes.

    Attributes:
        log_probs: `(B, N, V)` float64, of what comes next.
    """

    def __init__(self, lm: CausalLM, batch: int, device: torch.device) -> None:
        self.lm = lm
        said, state = lm.step(lm.start(1, device), torch.full((1,), EOS, device=device))
        self.log_probs = said.double().expand(batch, 1, -1)
        self._read = [[_Read(state, 0, 0)] for _ in range(batch)]

    def advance(self, parents: Tensor, said: Tensor) -> None:
        """Go on with other histories.

        Args:
            parents: `(B, K)` int64, which history each of the new ones was.
            said: `(B, K)` int64, the piece that is now behind it; -1 for none.
        """
        utterances = torch.arange(len(parents), device=parents.device)[:, None]
        self.log_probs = self.log_probs[utterances, parents]
        grown: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        kept: list[list[_Read]] = []
        for row, (origins, pieces) in enumerate(zip(parents.tolist(), said.tolist())):
            kept.append([self._read[row][origin] for origin in origins])
            for column, piece in enumerate(pieces):
                if piece >= 0:
                    grown[kept[row][column].length].append((row, column, piece))
        self._read = kept
        for length, places in grown.items():
            self._grow(length, places)

    def _grow(self, length: int, places: list[tuple[int, int, int]]) -> None:
        """Read one piece more of the histories `(row, column, piece)`, all of `length` pieces."""
        device = self.log_probs.device
        groups: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for place in places:
            groups[id(self._read[place[0]][place[1]].state)].append(place)
        parts = []
        for group in groups.values():
            before = [self._read[row][column] for row, column, _ in group]
            chosen = torch.tensor([each.row for each in before], device=device)
            parts.append(self.lm.select(before[0].state, chosen))
        places = [place for group in groups.values() for place in group]
        pieces = torch.tensor([piece for _, _, piece in places], device=device)
        log_probs, state = self.lm.step(parts[0] if len(parts) == 1 else self.lm.join(parts), pieces)
        rows = torch.tensor([row for row, _, _ in places], device=device)
        columns = torch.tensor([column for _, column, _ in places], device=device)
        self.log_probs[rows, columns] = log_probs.double()
        for index, (row, column, _) in enumerate(places):
            self._read[row][column] = _Read(state, index, length + 1)
