"""The CTC prefix score as a scorer of a label-synchronous beam search.

Source: Watanabe et al. 2017, section II-C; here for CIF students, whose number of tokens is the number of
fires.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retort.decoding.ctc import Alignments, CtcPrefixes
from retort.text.tokenizers import BLANK, EOS, PAD

_LEAST = -1e4
"""Log-probability of what CTC cannot emit; finite, because differences are computed."""


@dataclass(frozen=True)
class _State:
    """N hypotheses of each of B utterances.

    Attributes:
        alignments: CTC variables of each hypothesis without its last token.
        scores: `(B, N, V)` float64, log-probability of the hypothesis with each next token; None before the
            first.
        ended: `(B, N)`, whether the hypothesis contains EOS.
    """

    alignments: Alignments
    scores: Tensor | None
    ended: Tensor


class CtcPrefixScorer:
    """Adds `weight` times the change of the CTC prefix log-probability by each token.

    EOS changes the prefix probability to that of the whole utterance; tokens after EOS change nothing.

    Args:
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`, valid frames.
        weight: weight of the CTC log-probabilities, relative to a decoder weight of 1.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, weight: float) -> None:
        self.prefixes = CtcPrefixes(log_probs, lengths)
        self.weight = weight

    def start(self, rows: int, device: torch.device) -> _State:
        alignments = self.prefixes.start()
        return _State(alignments, None, torch.zeros_like(alignments.last, dtype=torch.bool))

    def step(self, state: _State, previous: Tensor) -> tuple[Tensor, _State]:
        last = previous.view(state.ended.shape)
        if state.scores is None:  # `previous` is the start symbol
            alignments, ended = state.alignments, state.ended
            before = torch.zeros_like(last, dtype=torch.float64)
        else:
            before = state.scores.gather(2, last[..., None])[..., 0]
            ended = state.ended | (last == EOS)
            parents = torch.arange(last.shape[1], device=last.device).expand_as(last)
            # An ended hypothesis is extended by an arbitrary label; the result is not used.
            alignments = self.prefixes.advance(
                state.alignments, parents, last.masked_fill(ended | (last == BLANK), EOS)
            )
        scores = self.prefixes.extended(alignments)
        scores[..., EOS] = self.prefixes.whole(alignments)
        scores = scores.clamp(min=_LEAST)
        gains = (scores - before[..., None]).masked_fill(ended[..., None], 0.0)
        gains[..., [BLANK, PAD]] = 0.0
        flat = (self.weight * gains).flatten(0, 1).to(torch.float32)
        return flat, _State(alignments, scores, ended)

    def select(self, state: _State, rows: Tensor) -> _State:
        batch, width = state.ended.shape
        chosen = rows.view(batch, -1)
        places = torch.arange(batch, device=rows.device)[:, None], chosen % width
        alignments = state.alignments
        return replace(
            state,
            alignments=Alignments(alignments.blank[places], alignments.label[places], alignments.last[places]),
            scores=None if state.scores is None else state.scores[places],
            ended=state.ended[places],
        )
