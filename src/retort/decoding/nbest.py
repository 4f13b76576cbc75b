"""Several readings of a recording, the best first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retort.decoding.beam import Candidate
from retort.decoding.transcript import Transcript, join_transcripts, time_hypothesis
from retort.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Alternative:
    """A reading of a recording and the score that it is ranked by (:class:`retort.decoding.beam.Candidate`)."""

    transcript: Transcript
    score: float


def time_candidates(
    candidates: Iterable[Candidate],
    most: int,
    tokenizer: Tokenizer,
    frame_seconds: float,
    offset: float,
    duration: float,
) -> list[Alternative]:
    """The first `most` candidates of different texts, laid on the clock as `time_hypothesis` does.

    Different tokens may spell one text; the first of them, the best, stands for it.
    """
    timed = (
        Alternative(time_hypothesis(each.hypothesis, tokenizer, frame_seconds, offset, duration), each.score)
        for each in candidates
    )
    return _different(timed, most)


def join_alternatives(parts: Sequence[Sequence[Alternative]], separator: str, most: int) -> list[Alternative]:
    """The best readings of a whole recording from those of its stretches; scores add up.

    Args:
        parts: of each stretch in order, best first.
        separator: what stands between words of the text.
        most: readings wanted.
    """
    paths: list[tuple[float, list[Transcript]]] = [(0.0, [])]
    for part in parts:
        grown = [(score + each.score, [*said, each.transcript]) for score, said in paths for each in part]
        paths = sorted(grown, key=lambda path: path[0], reverse=True)[:most]
    joined = (Alternative(join_transcripts(said, separator), score) for score, said in paths)
    return _different(joined, most)


def _different(alternatives: Iterable[Alternative], most: int) -> list[Alternative]:
    kept: dict[str, Alternative] = {}
    for each in alternatives:
        kept.setdefault(each.transcript.text, each)
        if len(kept) == most:
            break
    return list(kept.values())
