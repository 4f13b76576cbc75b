"""Shallow fusion: a language model that has its say at every fire of the beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.decoding.cif import Scorer
from retort.lm.causal import CausalLM
from retort.lm.factory import open_causal_lm
from retort.text.tokenizers import EOS, Tokenizer


@dataclass(frozen=True)
class _FusionState:
    """What a language model knows of M hypotheses.

    Attributes:
        memory: the model's own state; None before the first fire's start symbol was read.
        log_probs: `(M, V)`, what it said of the last fire; None before the first.
        total: `(M,)` float64, its log-probability of what was said, EOS included.
        count: `(M,)` int64, tokens in that.
        ended: `(M,)`, whether EOS was said.
    """

    memory: Any
    log_probs: Tensor | None
    total: Tensor
    count: Tensor
    ended: Tensor


class Fusion:
    """A causal language model as a :class:`retort.decoding.cif.Scorer`: its log-probabilities times a weight.

    The model is asked for all that a hypothesis says, EOS included, and never for what stands behind EOS. But
    hypotheses are compared over the same fires. If those behind EOS cost nothing, a sentence broken off early
    would save the model's cost of all the rest, which for a long utterance can be more than the student asks
    for an EOS in the wrong place. So each of them costs what a token of that hypothesis has cost the model on
    average: its opinion of an ended hypothesis is the mean log-probability times the number of fires, and how
    many tokens there are stays the affair of the fires. A hypothesis that ends at its last fire, as those of a
    trained student do, has the plain sum.

    Args:
        lm: over the student's pieces.
        weight: of its log-probabilities.
    """

    def __init__(self, lm: CausalLM, weight: float) -> None:
        self.lm = lm
        self.weight = weight

    def start(self, rows: int, device: torch.device) -> _FusionState:
        nothing = torch.zeros(rows, dtype=torch.int64, device=device)
        return _FusionState(self.lm.start(rows, device), None, nothing.double(), nothing, nothing.bool())

    def step(self, state: _FusionState, previous: Tensor) -> tuple[Tensor, _FusionState]:
        total, count, ended = state.total, state.count, state.ended
        if state.log_probs is not None:  # else `previous` is the start symbol
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
        """The rows of several states, all of which have read equally many tokens, as one."""
        log_probs = [each.log_probs for each in states if each.log_probs is not None]
        return _FusionState(
            self.lm.join([each.memory for each in states]),
            torch.cat(log_probs) if log_probs else None,
            torch.cat([each.total for each in states]),
            torch.cat([each.count for each in states]),
            torch.cat([each.ended for each in states]),
        )


class Summed:
    """Several scorers as one: their opinions added."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = list(scorers)

    def start(self, rows: int, device: torch.device) -> list[Any]:
        return [each.start(rows, device) for each in self.scorers]

    def step(self, state: list[Any], previous: Tensor) -> tuple[Tensor, list[Any]]:
        scores, states = zip(*(each.step(own, previous) for each, own in zip(self.scorers, state)))
        return sum(scores[1:], start=scores[0]), list(states)

    def select(self, state: list[Any], rows: Tensor) -> list[Any]:
        return [each.select(own, rows) for each, own in zip(self.scorers, state)]


def open_fitting_lm(folder: str, tokenizer: Tokenizer, device: torch.device | str) -> CausalLM:
    """A language model of `retort lm train`, checked to be over the student's pieces.

    Raises:
        UserError: it cannot be opened, or its pieces are not the student's, id by id.
    """
    lm = open_causal_lm(folder, device)
    theirs, ours = lm.symbols, tokenizer.symbols
    if theirs != ours:
        remedy = "Train it over the student's pieces: `tokenizer` of its recipe names the student"
        what = f"a language model of {len(theirs):,} pieces, the student has {len(ours):,}"
        if len(theirs) == len(ours):
            first = next(index for index, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1])
            what = (
                f"a language model of other pieces than the student's: id {first} is '{theirs[first]}' there, "
                f"'{ours[first]}' here"
            )
        raise UserError(what, where=folder, remedy=remedy)
    return lm
