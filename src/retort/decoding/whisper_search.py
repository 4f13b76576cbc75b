"""The search of a Whisper student: greedy or with a beam, as `transformers`' generate does it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from retort.decoding.cif import NEG_INF, Scorer
from retort.decoding.hypothesis import NEVER_EMITTED, Hypothesis, until_eos
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Search
from retort.decoding.token_search import TokenSearch
from retort.decoding.whisper_times import frames_of_tokens
from retort.nn.ctc import greedy_peaks
from retort.students.student import Encoded
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, UNKNOWN
from retort.text.whisper_pieces import WhisperTokenizer

FRAMES_OF_A_TOKEN = 4
"""Speech has fewer than one token per this many frames of 20 ms."""
SPARE_TOKENS = 8
"""Additional tokens that a hypothesis may have."""


class WhisperSearch(TokenSearch[WhisperStudent]):
    """Search of a Whisper student; times are those of the CTC head, or of the attention to the frames.

    Args:
        student: student in eval mode, on the device of the search.
        tokenizer: the student's.
        options: decoding options. Without a `length_weight` hypotheses of the beam search are ranked by their
            mean log-probability per token, as in `transformers` and openai-whisper, otherwise by the sum plus
            that weight for every token.
        before: an earlier search of the same student; its language model is reused if it is the same one.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    weighs_length = True

    def __init__(
        self,
        student: WhisperStudent,
        tokenizer: WhisperTokenizer,
        options: DecodingOptions,
        before: Search | None = None,
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        self.tokenizer = tokenizer
        self.suppression = Suppression.of(tokenizer)

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """N-best list of each utterance; for beam 1 without a language model the search is greedy."""
        if self.greedy:
            found = [[each] for each in greedy_whisper(self.student, encoded, self.suppression)]
        else:
            options = self.options
            found = beam_whisper(
                self.student, encoded, self.beam, self.suppression, options.length_weight, self.scorer
            )
        return self.ranked(self._timed(found, encoded))

    @torch.inference_mode()
    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]] | None:
        """Token ids of the text of the CTC head's best path."""
        if self.student.byte_ctc is None:
            return None
        peaks = greedy_peaks(self.student.byte_log_probs(encoded), encoded.lengths, (0,))
        spelled = (bytes(peak.label - 1 for peak in row).decode("utf-8", "replace") for row in peaks)
        return [self.tokenizer.encode(text.strip()) for text in spelled]

    def _timed(self, found: list[list[Hypothesis]], encoded: Encoded) -> list[list[Hypothesis]]:
        rows: list[list[Hypothesis]] = [[] for _ in found]
        for column in zip_longest(*found):  # one rank of all utterances at a time, since lists may be long
            spans = frames_of_tokens(
                self.student, encoded, [[] if each is None else each.ids for each in column]
            )
            for row, each, (starts, ends) in zip(rows, column, spans):
                if each is not None:
                    row.append(replace(each, starts=starts, ends=ends))
        return rows


@dataclass(frozen=True)
class Suppression:
    """Ids that a search may not output.

    Attributes:
        always: ids that are suppressed at every step.
        first: ids that are suppressed at the first step.
    """

    always: list[int]
    first: list[int]

    @classmethod
    def of(cls, tokenizer: WhisperTokenizer) -> Suppression:
        """The tokenizer's suppressed ids, and the special ids that Whisper does not have."""
        always = [*NEVER_EMITTED, UNKNOWN, *tokenizer.suppressed]
        return cls(always, [*always, *tokenizer.begin_suppressed])

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Log-probabilities `(M, V)` float32 of `logits (M, V)`, normalised over the allowed ids; minus
        infinity for the others. `transformers` does the same with `renormalize_logits`."""
        allowed = logits.float().clone()
        allowed[:, self.always if step else self.first] = NEG_INF
        return allowed.log_softmax(-1)


def token_limits(student: WhisperStudent, encoded: Encoded) -> Tensor:
    """Maximum number of tokens `(B,)` of each utterance, including EOS, from its duration and the decoder's
    positions."""
    limits = encoded.lengths // FRAMES_OF_A_TOKEN + SPARE_TOKENS
    return limits.clamp(max=student.most_tokens).masked_fill(encoded.lengths == 0, 0)


@torch.inference_mode()
def greedy_whisper(
    student: WhisperStudent, encoded: Encoded, suppression: Suppression, limits: Tensor | None = None
) -> list[Hypothesis]:
    """Greedy decoding up to EOS or the limit of tokens; without times.

    Args:
        student: student in eval mode.
        encoded: encoder output.
        limits: `(B,)`, by default those of :func:`token_limits`.
    """
    limits = token_limits(student, encoded) if limits is None else limits
    previous = torch.full_like(limits, EOS)
    running = limits > 0
    state = student.decoder.start(encoded.hidden, encoded.lengths)
    tokens: list[Tensor] = []
    scores: list[Tensor] = []
    while running.any():
        logits, state = student.decoder.step(state, previous)
        score, previous = suppression(logits, len(tokens)).max(-1)
        tokens.append(previous)
        scores.append(score)
        running &= (previous != EOS) & (limits > len(tokens))
    if not tokens:
        return [Hypothesis([], [], []) for _ in limits]
    rows = torch.stack(tokens, 1).tolist(), torch.stack(scores, 1).tolist(), limits.tolist()
    return [until_eos(ids[:limit], each, []) for ids, each, limit in zip(*rows)]


@dataclass
class _Beam:
    """Hypotheses of one utterance.

    Attributes:
        tokens, log_probs: of the active hypotheses.
        sums: scores of the active hypotheses.
        ended: hypotheses that have ended, best first.
    """

    tokens: list[list[int]] = field(default_factory=lambda: [[]])
    log_probs: list[list[float]] = field(default_factory=lambda: [[]])
    sums: list[float] = field(default_factory=lambda: [0.0])
    ended: list[Hypothesis] = field(default_factory=list)

    def end(self, tokens: list[int], log_probs: list[float], score: float, most: int) -> None:
        self.ended.append(Hypothesis(tokens, log_probs, [], score=score))
        self.ended.sort(key=lambda each: each.score, reverse=True)
        del self.ended[most:]


@torch.inference_mode()
def beam_whisper(
    student: WhisperStudent,
    encoded: Encoded,
    beam: int,
    suppression: Suppression,
    length_weight: float = 0.0,
    scorer: Scorer | None = None,
    limits: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """N-best list of each utterance: up to `beam` hypotheses, at least one, without times.

    An utterance is finished when `beam` hypotheses have ended and no active one has a better mean.

    Args:
        student: student in eval mode.
        encoded: encoder output.
        beam: number of hypotheses.
        length_weight: score added for every token; 0 ranks by the mean per token.
        scorer: scores every token, including EOS.
        limits: `(B,)`, maximum number of tokens including EOS; by default those of :func:`token_limits`.
    """
    most, device = (token_limits(student, encoded) if limits is None else limits).tolist(), encoded.lengths.device
    beams = [_Beam() for _ in most]
    state = student.decoder.start(encoded.hidden, encoded.lengths)
    memory: Any = None if scorer is None else scorer.start(len(most), device)
    previous = torch.full((len(most),), EOS, device=device)
    for step in range(max(most, default=0)):
        logits, state = student.decoder.step(state, previous)
        own = suppression(logits, step)
        gains = own.double()
        if scorer is not None:
            lm_scores, memory = scorer.step(memory, previous)
            gains = gains + lm_scores
        width = len(previous) // len(beams)
        sums = [each.sums + [NEG_INF] * (width - len(each.sums)) for each in beams]
        totals = torch.tensor(sums, dtype=torch.float64, device=device)[..., None] + gains.view(len(beams), width, -1)
        values, best = totals.flatten(1).topk(min(2 * beam, totals[0].numel()))
        parents, tokens = best.div(totals.shape[-1], rounding_mode="floor"), best % totals.shape[-1]
        rows = torch.arange(len(beams), device=device)[:, None]
        own_scores = own.view(len(beams), width, -1)[rows, parents, tokens]
        origins: list[int] = []
        following: list[int] = []
        for row, (each, limit) in enumerate(zip(beams, most)):
            continued: list[tuple[int, int]] = []
            if step < limit and each.sums:
                choices = zip(values[row].tolist(), parents[row].tolist(), tokens[row].tolist(), own_scores[row].tolist())
                continued = _advance(each, list(choices), beam, length_weight, last=step == limit - 1)
            continued += [(0, EOS)] * (beam - len(continued))
            origins += [row * width + parent for parent, _ in continued]
            following += [token for _, token in continued]
        if not any(each.sums for each in beams):
            break
        chosen = torch.tensor(origins, device=device)
        state = state.select(chosen)
        memory = None if scorer is None else scorer.select(memory, chosen)
        previous = torch.tensor(following, device=device)
    return [each.ended or [Hypothesis([], [], [], score=0.0)] for each in beams]


def _advance(
    beam: _Beam, choices: list[tuple[float, int, int, float]], most: int, length_weight: float, *, last: bool
) -> list[tuple[int, int]]:
    """Extend the hypotheses by one token; returns parent and token of the active ones, none if the utterance
    is finished."""

    def rank(total: float, count: int) -> float:
        return total + length_weight * (count - 1) if length_weight else total / count

    tokens: list[list[int]] = []
    log_probs: list[list[float]] = []
    sums: list[float] = []
    continued: list[tuple[int, int]] = []
    for place, (total, parent, token, own) in enumerate(choices):
        if total == NEG_INF or len(continued) == most:
            break
        before, scores = beam.tokens[parent], beam.log_probs[parent]
        if token == EOS:
            if place < most:
                beam.end(before, scores, rank(total, len(before) + 1), most)
            continue
        tokens.append([*before, token])
        log_probs.append([*scores, own])
        sums.append(total)
        continued.append((parent, token))
    count = len(beam.tokens[0]) + 1
    if last:
        for ids, scores, total in zip(tokens, log_probs, sums):
            beam.end(ids, scores, rank(total, count), most)
    done = last or not sums or (len(beam.ended) == most and rank(max(sums), count) <= beam.ended[-1].score)
    if done:
        beam.tokens, beam.log_probs, beam.sums = [], [], []
        return []
    beam.tokens, beam.log_probs, beam.sums = tokens, log_probs, sums
    return continued
