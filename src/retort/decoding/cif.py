"""Beam search over fired embeddings, batched over hypotheses and utterances, with cached keys and values.

The search is synchronous with the fires: all hypotheses of an utterance have consumed the same fires, and
scores are plain sums without a length penalty. The hypothesis ends at its first EOS, but its score goes on:
at each later fire it is extended by its best token only and pays that token's log-probability. If these fires
cost nothing, ending early would be favoured, because a decoder trained with label smoothing gives EOS a small
probability everywhere. The reference (CIF-HieraDist, `cif_decoder.py`) also extends ended hypotheses, but
with several tokens each, so that copies that differ only after EOS fill the beam; here all hypotheses
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retort.decoding.hypothesis import NEVER_EMITTED, Hypothesis, until_eos
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.students.student import Encoded
from retort.text.tokenizers import EOS

NEG_INF = float("-inf")


class Scorer(Protocol):
    """An additional score for every next token, such as a weighted language model (shallow fusion)."""

    def start(self, rows: int, device: torch.device) -> Any:
        """The state of `rows` empty hypotheses."""

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        """Finite scores `(M, V)` to add to the log-probabilities, and the state after `previous (M,)` int64."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the given rows `(K,)` int64, in that order; rows may repeat."""


@dataclass(frozen=True)
class _Beams:
    """N hypotheses of each of B utterances, best first.

    Attributes:
        tokens: `(B, N, 1 + P)` int64, the start symbol and one token for each of P fires.
        log_probs: `(B, N, P)` float32, of those tokens.
        scores: `(B, N)` float64, since sums over many fires would lose precision in float32; minus infinity
            for missing hypotheses.
        ended: `(B, N)`, whether the hypothesis contains EOS.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor
    ended: Tensor


@torch.inference_mode()
def beam_fired(
    student: CifStudent,
    fired: FiredTokens,
    beam: int,
    scorer: Scorer | None = None,
    encoded: Encoded | None = None,
) -> list[list[Hypothesis]]:
    """Beam search over fired embeddings: up to `beam` different hypotheses of each utterance, at least one.

    Only the embeddings of one fire at a time are repeated for the hypotheses. With a parallel decoder and
    without a scorer the search is exact, because the scores of the positions are independent.

    Args:
        student: student in eval mode.
        beam: number of hypotheses after every fire; 1 gives the result of greedy decoding.
        scorer: contributes to the ranking, but not to the hypotheses' own log-probabilities.
        encoded: encoder output, for a decoder that attends to it (:meth:`CifStudent.start`).
    """
    batch, fires = fired.embeddings.shape[:2]
    device = fired.embeddings.device
    beams = _Beams(
        tokens=torch.full((batch, 1, 1), EOS, device=device),
        log_probs=torch.zeros(batch, 1, 0, device=device),
        scores=torch.zeros(batch, 1, dtype=torch.float64, device=device),
        ended=torch.zeros(batch, 1, dtype=torch.bool, device=device),
    )
    state = student.start(fired, encoded)
    memory = None if scorer is None else scorer.start(batch, device)
    for step in range(fires):
        previous = beams.tokens[..., -1].flatten()
        embedding = fired.embeddings[:, step].repeat_interleave(beams.scores.shape[1], 0)
        logits, state = student.decoder.step(state, previous, embedding)
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER_EMITTED] = NEG_INF
        gains = log_probs
        if scorer is not None:
            lm_scores, memory = scorer.step(memory, previous)
            gains = log_probs + lm_scores
        running = (fired.lengths > step)[:, None].expand_as(beams.ended)
        if student.config.cif.spare:
            running = running & ~beams.ended
        beams, rows = _advance(beams, log_probs, gains, running, beam)
        state = state.select(rows)
        memory = None if scorer is None else scorer.select(memory, rows)
    return _candidates(beams, fired)


def _advance(
    beams: _Beams, log_probs: Tensor, gains: Tensor, running: Tensor, beam: int
) -> tuple[_Beams, Tensor]:
    """Extend the hypotheses by one fire.

    Args:
        beams: N hypotheses of each of B utterances.
        log_probs: `(B N, V)` of the student.
        gains: `(B N, V)`, increase of the score for each token.
        running: `(B, N)`, whether the hypothesis is extended at this fire; the others stay unchanged.
        beam: number of hypotheses to keep.

    Returns:
        The new hypotheses, and the rows `(B K,)` of `log_probs` they extend.
    """
    batch, width = beams.scores.shape
    branches = min(beam, gains.shape[-1])
    # For ties, topk may select another token than the max of greedy decoding.
    gain, tokens = gains.max(-1, keepdim=True) if branches == 1 else gains.topk(branches)
    gain, tokens = gain.view(batch, width, branches).double(), tokens.view(batch, width, branches)
    single = (beams.ended | ~running)[..., None]
    later = torch.arange(branches, device=gain.device) > 0
    gain = torch.where(running[..., None], gain, 0.0).masked_fill(single & later, NEG_INF)
    scores = (beams.scores[..., None] + gain).flatten(1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :beam], order[:, :beam]
    parents = order // branches
    utterance = torch.arange(batch, device=order.device)[:, None]
    chosen = tokens.flatten(1).gather(1, order)
    own = log_probs.view(batch, width, -1)[utterance, parents, chosen]
    after = _Beams(
        tokens=torch.cat((beams.tokens[utterance, parents], chosen[..., None]), -1),
        log_probs=torch.cat((beams.log_probs[utterance, parents], own[..., None]), -1),
        scores=scores,
        ended=beams.ended[utterance, parents] | (chosen == EOS),
    )
    return after, (utterance * width + parents).flatten()


def _candidates(beams: _Beams, fired: FiredTokens) -> list[list[Hypothesis]]:
    """The hypotheses, cut at the last fire of their utterance and at their first EOS."""
    found = []
    for rows, own, scores, ends, length in zip(
        beams.tokens[..., 1:].tolist(),
        beams.log_probs.tolist(),
        beams.scores.tolist(),
        fired.fire_times.tolist(),
        fired.lengths.tolist(),
    ):
        each = []
        for ids, log_probs, score in zip(rows, own, scores):
            if score == NEG_INF:
                continue
            each.append(until_eos(ids[:length], log_probs, ends, score))
        found.append(each)
    return found
