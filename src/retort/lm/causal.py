"""The interface of causal language models over a student's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, PAD, Tokenizer

BARRED = [BLANK, PAD]
"""Ids that are never predicted."""
IMPOSSIBLE = -1e4
"""Log-probability of a barred id; finite, so that sums of scores stay finite."""


class CausalLM(Protocol):
    """A model of the probability of the next token given the previous ones.

    EOS is both the start symbol and the end of a sentence; tokens after it belong to another sentence.

    Attributes:
        tokenizer: tokenizer with the ids of the student.
        symbols: tokens by id: `tokenizer.symbols`.
        normalise: normaliser of the training text.
        parameters: number of parameters.
    """

    tokenizer: Tokenizer
    symbols: list[str]
    normalise: Normaliser
    parameters: int

    def start(self, rows: int, device: torch.device) -> Any:
        """The state of `rows` empty sentences; moves the model to `device`."""

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        """Extend sentences by one token.

        Args:
            state: state of M sentences.
            previous: `(M,)` int64, last token of each, EOS at the start.

        Returns:
            Finite log-probabilities `(M, V)` float32 of the next token, and the state after `previous`.
        """

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the given rows `(K,)` int64, in that order; rows may repeat."""

    def join(self, states: Sequence[Any]) -> Any:
        """Concatenate states that have all read the same number of tokens."""

    def distributions(self, previous: Tensor) -> Tensor:
        """Finite log-probabilities `(B, N, V)` float32 of the token after each of `previous (B, N)` int64, which starts
        with EOS, on the model's device."""

    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities `(n + 1,)` float32, on the CPU, of the n tokens of each sentence (ids without
        EOS) and EOS."""
