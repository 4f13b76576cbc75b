"""Joint beam search with an attention decoder and the CTC head, label-synchronous.

Source: Watanabe et al. 2017, section II-C. The score of a hypothesis combines the decoder's log-probability
with the CTC prefix score. Neither increases with a further token, so without a length bonus the search ends
when no active hypothesis is better than the ended ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from retort.decoding.cif import NEG_INF, Scorer
from retort.decoding.ctc import CtcPrefixes
from retort.decoding.hypothesis import NEVER_EMITTED, Hypothesis, until_eos
from retort.nn.cross_decoder import CrossDecoder
from retort.students.attention import AttentionStudent
from retort.students.ctc import ctc_log_probs
from retort.students.student import Encoded
from retort.text.tokenizers import EOS


@dataclass(frozen=True)
class JointWeights:
    """Weights of a joint search.

    Attributes:
        ctc: weight of the CTC head's log-probabilities; the decoder has 1 - ctc.
        length: score added for every token.
    """

    ctc: float
    length: float = 0.0


@dataclass(frozen=True)
class _Beams:
    """N active hypotheses of each of B utterances, best first.

    Attributes:
        tokens: `(B, N, 1 + P)` int64, the start symbol and P tokens.
        log_probs: `(B, N, P)` float32 of the decoder.
        sums: `(B, N)` float64, scores without the CTC part.
        scores: `(B, N)` float64; minus infinity for missing hypotheses.
    """

    tokens: Tensor
    log_probs: Tensor
    sums: Tensor
    scores: Tensor


@dataclass
class _Ended:
    """The best ended hypotheses of an utterance, best first; once `settled`, no other is added."""

    most: int
    settled: bool = False
    found: list[Hypothesis] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """A hypothesis with a higher score is added."""
        return self.found[-1].score if len(self.found) == self.most else NEG_INF

    def add(self, candidate: Hypothesis) -> None:
        self.found.append(candidate)
        self.found.sort(key=lambda each: each.score, reverse=True)
        del self.found[self.most :]


@torch.inference_mode()
def joint_beam(
    student: AttentionStudent,
    encoded: Encoded,
    beam: int,
    weights: JointWeights,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """N-best list of each utterance: up to `beam` different hypotheses, at least one, without times.

    Every hypothesis ends in EOS and has at most as many tokens as the utterance has frames. At every step up
    to `beam` hypotheses are extended, and each may also end.

    Args:
        student: student in eval mode.
        encoded: encoder output.
        beam: number of hypotheses.
        weights: weights of the CTC head and of length.
        scorer: scores every token, including EOS.
    """
    decoder, lengths = student.decoder, encoded.lengths
    batch, device = len(lengths), lengths.device
    prefixes = CtcPrefixes(ctc_log_probs(student, encoded), lengths) if weights.ctc > 0.0 else None
    alignments = None if prefixes is None else prefixes.start()
    state, memory = decoder.start(encoded.hidden, lengths), None
    if scorer is not None:
        memory = scorer.start(batch, device)
    zeros = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    beams = _Beams(
        torch.full((batch, 1, 1), EOS, device=device), torch.zeros(batch, 1, 0, device=device), zeros, zeros
    )
    ended, limits = [_Ended(beam) for _ in range(batch)], lengths.tolist()
    for step in range(max(limits, default=0) + 1):
        previous = beams.tokens[..., -1].flatten()
        logits, state = decoder.step(state, previous)
        own = logits.float().log_softmax(-1).view(*beams.scores.shape, -1)
        gains = (1.0 - weights.ctc) * own.double()
        if scorer is not None:
            lm_scores, memory = scorer.step(memory, previous)
            gains = gains + lm_scores.view_as(own)
        sums = beams.sums[..., None] + gains
        scores, ends = sums + weights.length, sums[..., EOS]
        if prefixes is not None and alignments is not None:
            scores = scores + weights.ctc * prefixes.extended(alignments)
            ends = ends + weights.ctc * prefixes.whole(alignments)
        _collect(beams, ends.masked_fill(beams.scores == NEG_INF, NEG_INF), ended)
        scores[..., [*NEVER_EMITTED, EOS]] = NEG_INF
        over = (lengths <= step)[:, None] | (beams.scores == NEG_INF)
        scores = scores.masked_fill(over[..., None], NEG_INF)
        beams, parents, chosen = _advance(beams, sums + weights.length, scores, own, beam)
        if _settled(beams, ended, [limit - step - 1 for limit in limits], weights.length):
            break
        rows = (torch.arange(batch, device=device)[:, None] * scores.shape[1] + parents).flatten()
        state = state.select(rows)
        memory = None if scorer is None else scorer.select(memory, rows)
        if prefixes is not None and alignments is not None:
            alignments = prefixes.advance(alignments, parents, chosen)
    return [each.found for each in ended]


def _advance(
    beams: _Beams, sums: Tensor, scores: Tensor, own: Tensor, beam: int
) -> tuple[_Beams, Tensor, Tensor]:
    """Extend the hypotheses by one token.

    Args:
        sums, scores: `(B, N, V)` float64, these values of :class:`_Beams` with each next token.
        own: `(B, N, V)` float32, log-probabilities of the decoder.
        beam: hypotheses to keep.

    Returns:
        The new hypotheses, and the parent and the token of each, both `(B, K)`.
    """
    size = scores.shape[-1]
    values, best = scores.flatten(1).topk(min(beam, scores.shape[1] * size))
    parents, chosen = best.div(size, rounding_mode="floor"), best % size
    rows = torch.arange(len(best), device=best.device)[:, None]
    after = _Beams(
        tokens=torch.cat((beams.tokens[rows, parents], chosen[..., None]), -1),
        log_probs=torch.cat((beams.log_probs[rows, parents], own[rows, parents, chosen][..., None]), -1),
        sums=sums[rows, parents, chosen],
        scores=values,
    )
    return after, parents, chosen


def _collect(beams: _Beams, ends: Tensor, ended: list[_Ended]) -> None:
    """Add the hypotheses that are among the best if they end here with scores `ends (B, N)`."""
    for row, (scores, best) in enumerate(zip(ends.tolist(), ended)):
        if best.settled:
            continue
        for column, score in enumerate(scores):
            if score > best.worst:
                ids = beams.tokens[row, column, 1:].tolist()
                log_probs = beams.log_probs[row, column].tolist()
                best.add(Hypothesis(ids, log_probs, [], score=score))


def _settled(beams: _Beams, ended: list[_Ended], left: list[int], bonus: float) -> bool:
    """Whether in every utterance no active hypothesis can still be among the best with at most `left` more tokens.

    Hotwords may raise the score of an active hypothesis later, which is not considered. So that results do not depend
    on how long the search runs for the rest of the batch, an utterance stays settled.
    """
    for score, each, tokens in zip(beams.scores[:, 0].tolist(), ended, left):
        each.settled |= score == NEG_INF or score + max(bonus, 0.0) * max(tokens, 0) <= each.worst
    return all(each.settled for each in ended)


@torch.inference_mode()
def greedy_attention(student: AttentionStudent, encoded: Encoded) -> list[Hypothesis]:
    """Greedy decoding, up to EOS or as many tokens as there are frames; without times."""
    lengths = encoded.lengths
    previous = torch.full_like(lengths, EOS)
    running = lengths > 0
    state = student.decoder.start(encoded.hidden, lengths)
    tokens, scores = [previous], [torch.zeros_like(lengths, dtype=torch.float32)]
    while running.any():
        logits, state = student.decoder.step(state, previous)
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER_EMITTED] = NEG_INF
        score, previous = log_probs.max(-1)
        tokens.append(previous)
        scores.append(score)
        running &= (previous != EOS) & (lengths >= len(tokens))
    found = []
    for ids, each, length in zip(
        torch.stack(tokens, 1)[:, 1:].tolist(), torch.stack(scores, 1)[:, 1:].tolist(), lengths.tolist()
    ):
        found.append(until_eos(ids[:length], each, []))
    return found


@torch.inference_mode()
def teacher_forced(
    decoder: CrossDecoder, encoded: Encoded, found: list[list[list[int]]]
) -> list[list[tuple[list[float], float]]]:
    """Decoder log-probabilities of given sentences: those of the tokens, and that of EOS.

    Args:
        found: token ids of sentences, without EOS, for each utterance.
    """
    results = []
    for row, sentences in enumerate(found):
        most = max(map(len, sentences)) + 1
        targets = torch.full((len(sentences), most), EOS, device=encoded.hidden.device)
        for place, ids in enumerate(sentences):
            targets[place, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        results.append(_force(decoder, encoded, row, targets, [len(ids) for ids in sentences]))
    return results


def _force(
    decoder: CrossDecoder, encoded: Encoded, row: int, targets: Tensor, counts: list[int]
) -> list[tuple[list[float], float]]:
    previous = torch.nn.functional.pad(targets, (1, 0), value=EOS)[:, :-1]
    length = encoded.lengths[row : row + 1]
    frames = encoded.hidden[row : row + 1, : max(int(length), 1)]
    logits = decoder(previous, frames, length).logits
    log_probs = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].tolist()
    return [(each[:count], each[count]) for each, count in zip(log_probs, counts)]
