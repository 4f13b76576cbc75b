"""Shallow fusion: adds LM log-probabilities at every fire of the beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.lm.causal import CausalLM
from retort.lm.factory import open_causal_lm
from retort.text.tokenizers import EOS, Tokenizer


@dataclass(frozen=True)
class _FusionState:
    """State of the language model for M hypotheses.

    Attributes:
        memory: the model's own state; None before the start symbol.
        log_probs: `(M, V)`, log-probabilities at the last fire; None before the first.
        total: `(M,)` float64, sum of the LM log-probabilities of the tokens, EOS included.
        count: `(M,)` int64, number of these tokens.
        ended: `(M,)`, whether the hypothesis contains EOS.
    """

    memory: Any
    log_probs: Tensor | None
    total: Tensor
    count: Tensor
    ended: Tensor


class Fusion:
    """A causal language model as a :class:`retort.decoding.cif.Scorer`: its log-probabilities times a weight.

    All tokens of a hypothesis up to and including EOS are scored by the LM. Hypotheses are compared over the
    same fires, so fires after EOS must cost something: otherwise ending a sentence early would save the LM
    cost of the rest, which for a long utterance can exceed the student's cost of a wrong EOS. Each fire after
    EOS therefore costs the mean log-probability per token of the hypothesis so far. A hypothesis that ends at
    its last fire, as trained students do, has the plain sum.

    Args:
        lm: language model over the student's tokens.
        weight: weight of the LM's log-probabilities for shallow fusion.
    """

    def __init__(self, lm: CausalLM, weight: float) -> None:
        self.lm = lm
        self.weight = weight

    def start(self, rows: int, device: torch.device) -> _FusionState:
        nothing = torch.zeros(rows, dtype=torch.int64, device=device)
        return _FusionState(self.lm.start(rows, device), None, nothing.double(), nothing, nothing.bool())

    def step(self, state: _FusionState, previous: Tensor) -> tuple[Tensor, _FusionState]:
        total, count, ended = state.total, state.count, state.ended
        if state.log_probs is not None:  # otherwise `previous` is the start symbol
            score = state.log_probs.gather(1, previous[:, None])[:, 0].double()
            total = torch.where(ended, total, total + score)
            count = torch.where(ended, count, count + 1)
            ended = ended | (previous == EOS)
        log_probs, memory = self.lm.step(state.memory, previous)
        mean = (total / count.clamp(min=1)).to(log_probs.dtype)
        lm_scores = self.weight * torch.where(ended[:, None], mean[:, None], log_probs)
        return lm_scores, _FusionState(memory, log_probs, total, count, ended)

    def select(self, state: _FusionState, rows: Tensor) -> _FusionState:
        return _FusionState(
            self.lm.select(state.memory, rows),
            None if state.log_probs is None else state.log_probs[rows],
            state.total[rows],
            state.count[rows],
            state.ended[rows],
        )

    def join(self, states: Sequence[_FusionState]) -> _FusionState:
        """Concatenate states that have all read the same number of tokens."""
        log_probs = [each.log_probs for each in states if each.log_probs is not None]
        return _FusionState(
            self.lm.join([each.memory for each in states]),
            torch.cat(log_probs) if log_probs else None,
            torch.cat([each.total for each in states]),
            torch.cat([each.count for each in states]),
            torch.cat([each.ended for each in states]),
        )


class Summed:
    """The sum of several scorers (:class:`retort.decoding.cif.Scorer`), which are concatenable if all of them are."""

    def __init__(self, scorers: Sequence[Any]) -> None:
        self.scorers: list[Any] = list(scorers)

    def start(self, rows: int, device: torch.device) -> list[Any]:
        return [each.start(rows, device) for each in self.scorers]

    def step(self, state: list[Any], previous: Tensor) -> tuple[Tensor, list[Any]]:
        scores, states = zip(*(each.step(own, previous) for each, own in zip(self.scorers, state)))
        return sum(scores[1:], start=scores[0]), list(states)

    def select(self, state: list[Any], rows: Tensor) -> list[Any]:
        return [each.select(own, rows) for each, own in zip(self.scorers, state)]

    def join(self, states: Sequence[list[Any]]) -> list[Any]:
        """Concatenate states, if each scorer can."""
        return [each.join(own) for each, own in zip(self.scorers, zip(*states))]


def open_fitting_lm(folder: str, tokenizer: Tokenizer, device: torch.device | str) -> CausalLM:
    """Open a language model of `retort lm train` and check that its vocabulary is the student's.

    Raises:
        UserError: it cannot be opened, or its vocabulary differs from the student's in any id.
    """
    lm = open_causal_lm(folder, device)
    theirs, ours = lm.symbols, tokenizer.symbols
    if theirs != ours:
        remedy = "Train it over the student's tokens: name the student in `tokenizer` of its recipe"
        what = f"the language model has {len(theirs):,} tokens, the student {len(ours):,}"
        if len(theirs) == len(ours):
            first = next(index for index, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1])
            what = (
                f"the vocabulary of the language model differs from the student's: id {first} is '{theirs[first]}', "
                f"for the student '{ours[first]}'"
            )
        raise UserError(what, where=folder, remedy=remedy)
    return lm
