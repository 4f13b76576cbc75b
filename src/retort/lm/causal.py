"""What a causal language model over a student's pieces is, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, PAD, Tokenizer

BARRED = [BLANK, PAD]
"""Ids that are never said."""
IMPOSSIBLE = -1e4
"""Log-probability of a barred id: finite, so that sums of opinions stay finite."""


class CausalLM(Protocol):
    """Says how probable every next piece is behind those before it.

    EOS stands before the first piece of a sentence and ends it; what is said behind that is another sentence.

    Attributes:
        tokenizer: of its pieces; the ids are those of the student whose tokenizer it is.
        symbols: the pieces by id: `tokenizer.symbols`.
        normalise: makes text what the model was trained on.
        parameters: how many numbers it holds.
    """

    tokenizer: Tokenizer
    symbols: list[str]
    normalise: Normaliser
    parameters: int

    def start(self, rows: int, device: torch.device) -> Any:
        """The state of `rows` sentences that have said nothing; the model moves to `device`."""

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        """One piece further.

        Args:
            state: of M sentences.
            previous: `(M,)` int64, what each said last, EOS at the start.

        Returns:
            log-probabilities `(M, V)` float32 of what comes next, finite, and the state behind `previous`.
        """

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the given rows `(K,)` int64, in that order, repeated if need be."""

    def join(self, states: Sequence[Any]) -> Any:
        """The states of several groups of sentences, all of which have read as many pieces, as one; in that order."""

    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities `(n + 1,)` float32, on the CPU, of each sentence's n pieces (ids without EOS) and EOS."""
