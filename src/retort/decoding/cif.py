"""Beam search over fired tokens: all hypotheses of a whole batch at once, with cached keys and values.

It goes from fire to fire, so the hypotheses of an utterance have read the same fires and their scores are plain
sums, without a length penalty. What was said before EOS is the hypothesis; EOS does not end its costs. It goes
on by its best token alone, once a fire, and pays for it like the others. Were it spared them (EOS forever with
probability one), ending early would be a way to save: a decoder trained with label smoothing gives EOS a small
probability everywhere, which for a long utterance is more than a whole hypothesis has. The reference
(CIF-HieraDist, `cif_decoder.py`) lets ended hypotheses go on too, but branch, so that what differs only behind
EOS crowds out the rest; here two hypotheses never say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retort.decoding.greedy import NEVER_EMITTED, Hypothesis, until_eos
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.students.student import Encoded
from retort.text.tokenizers import EOS

NEG_INF = float("-inf")


@dataclass(frozen=True)
class ScoredHypothesis:
    """A hypothesis of an n-best list.

    Attributes:
        hypothesis: with the student's own log-probabilities.
        score: what it is ranked by, higher is better: of the beam search the sum over all fires (what EOS and
            the tokens behind it cost, and a scorer's opinion, included), of greedy decoding the sum of
            `hypothesis.log_probs`; behind rescoring as :func:`retort.decoding.rescoring.rescore` says.
    """

    hypothesis: Hypothesis
    score: float


class Scorer(Protocol):
    """A second opinion on every next token, such as a weighted language model (shallow fusion)."""

    def start(self, rows: int, device: torch.device) -> Any:
        """The state of `rows` hypotheses that have said nothing."""

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        """What to add to the log-probabilities, finite, `(M, V)`, and the state behind `previous (M,)` int64."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of the given rows `(K,)` int64, in that order, repeated if need be."""


@dataclass(frozen=True)
class _Beams:
    """The hypotheses kept of each utterance, best first.

    Attributes:
        tokens: `(B, N, 1 + P)` int64, the start symbol and one token for each of P fires.
        log_probs: `(B, N, P)` float32, of those tokens.
        scores: `(B, N)` float64, so that sums over many fires rank as exactly as single log-probabilities do;
            minus infinity where there is no hypothesis.
        ended: `(B, N)`, whether EOS was said.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor
    ended: Tensor


@torch.inference_mode()
def beam_search(
    student: CifStudent, features: Tensor, feature_lengths: Tensor, beam: int, scorer: Scorer | None = None
) -> list[list[ScoredHypothesis]]:
    """The most probable hypotheses of each utterance, best first: up to `beam`, at least one, all different.

    Args:
        student: in eval mode.
        features: `(B, T, bins)` after CMVN.
        feature_lengths: `(B,)`.
        beam: hypotheses kept at every fire; with 1 it finds what greedy decoding finds.
        scorer: has a say in the ranking, none in the hypotheses' own log-probabilities.
    """
    encoded = student.encode(features, feature_lengths)
    return beam_fired(student, student.fire(encoded), beam, scorer, encoded)


@torch.inference_mode()
def beam_fired(
    student: CifStudent,
    fired: FiredTokens,
    beam: int,
    scorer: Scorer | None = None,
    encoded: Encoded | None = None,
) -> list[list[ScoredHypothesis]]:
    """Beam search over embeddings that were fired already, as :func:`beam_search`.

    Only one fire's embeddings at a time are repeated for the hypotheses. Without a scorer, what it finds with a parallel
    decoder is exactly the best there is: positions that know nothing of each other add up, so a beginning that `beam`
    others surpass is surpassed with whatever goes on from it.

    Args:
        encoded: what was fired, for a decoder that reads it (:meth:`CifStudent.start`).
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
    """One fire further.

    Args:
        beams: N hypotheses of each of B utterances.
        log_probs: `(B N, V)`, the student's.
        gains: `(B N, V)`, what a token adds to the score.
        running: `(B, N)`, which hypotheses go on with this fire; the others stay as they are.
        beam: hypotheses to keep.

    Returns:
        the new hypotheses, and the rows `(B K,)` of `log_probs` they came from.
    """
    batch, width = beams.scores.shape
    branches = min(beam, gains.shape[-1])
    # Among equals topk may take another than the max of greedy decoding.
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


def _candidates(beams: _Beams, fired: FiredTokens) -> list[list[ScoredHypothesis]]:
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
            each.append(ScoredHypothesis(until_eos(ids[:length], log_probs, ends), score))
        found.append(each)
    return found
