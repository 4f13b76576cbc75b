"""Hypotheses of searches: token sequences with log-probabilities and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from retort.common.errors import BadUtterance
from retort.common.peaks import Peak
from retort.text.tokenizers import BLANK, EOS, PAD

NEVER_EMITTED = [BLANK, PAD]
"""Ids that no decoder may emit."""
NOT_FRAME_LABELS = [PAD, EOS]
"""Ids that neither a CTC head nor a transducer may emit."""


@dataclass(frozen=True)
class Hypothesis:
    """A recognised token sequence with times and score.

    Attributes:
        ids: tokens up to the end symbol, which is excluded.
        log_probs: natural log-probability of each token according to the student.
        ends: encoder frame, as a fraction, at which each token ends; non-decreasing.
        starts: likewise, the frame at which each token starts; None if a token starts at the end of the
            previous one.
        score: ranks the hypotheses of an n-best list, higher is better. In beam search it is the sum over all fires,
            including LM scores, EOS and the tokens after it; in greedy decoding the sum of `log_probs`; after
            rescoring see :func:`retort.decoding.rescoring.rescore`.
    """

    ids: list[int]
    log_probs: list[float]
    ends: list[float]
    starts: list[float] | None = None
    score: float = 0.0


NBest: TypeAlias = "list[Hypothesis] | BadUtterance"
"""The n-best list of an utterance, at least one hypothesis, or the reason why there is none."""


def from_peaks(peaks: Sequence[Peak]) -> Hypothesis:
    """The tokens of a CTC path; each lasts for the frame in which it is most probable."""
    log_probs = [peak.log_prob for peak in peaks]
    return Hypothesis(
        [peak.label for peak in peaks],
        log_probs,
        [peak.frame + 1.0 for peak in peaks],
        [float(peak.frame) for peak in peaks],
        sum(log_probs),
    )


def until_eos(ids: list[int], log_probs: list[float], ends: list[float], score: float | None = None) -> Hypothesis:
    """The hypothesis up to the first EOS; the lists may be longer than the ids.

    Args:
        score: its score, by default the sum of the log-probabilities of its tokens.
    """
    count = ids.index(EOS) if EOS in ids else len(ids)
    own = log_probs[:count]
    return Hypothesis(ids[:count], own, ends[:count], score=sum(own) if score is None else score)
