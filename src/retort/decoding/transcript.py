"""What a recogniser says of a recording: text, and a time and a confidence for every token and word."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from retort.decoding.greedy import Hypothesis
from retort.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class TimedText:
    """A token or a word: seconds from the start of the recording, confidence in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """The text of a recording with its tokens and words in order; times never descend.

    Attributes:
        no_speech: 0 to 1, how likely the recording is without speech; 1 where the speech detector found none.
    """

    text: str
    words: list[TimedText]
    tokens: list[TimedText]
    no_speech: float = 0.0

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


def time_hypothesis(
    hypothesis: Hypothesis, tokenizer: Tokenizer, frame_seconds: float, offset: float, duration: float
) -> Transcript:
    """Lay a hypothesis on the clock.

    A token that fired begins where the one before it did and ends where it fires. A word's confidence is the
    product of its tokens'.

    Args:
        frame_seconds: of one encoder frame.
        offset: seconds before this stretch of audio in the recording.
        duration: seconds of this stretch; no time lies outside it.
    """
    begins = [0.0, *hypothesis.ends[:-1]] if hypothesis.starts is None else hypothesis.starts
    ends, starts = (
        [offset + min(frame * frame_seconds, duration) for frame in frames]
        for frames in (hypothesis.ends, begins)
    )
    tokens = [
        TimedText(surface, start, end, math.exp(score))
        for surface, start, end, score in zip(
            tokenizer.surfaces(hypothesis.ids), starts, ends, hypothesis.log_probs
        )
    ]
    words = [
        TimedText(
            word.text,
            tokens[word.first].start,
            tokens[word.last].end,
            math.exp(sum(hypothesis.log_probs[word.first : word.last + 1])),
        )
        for word in tokenizer.words(hypothesis.ids)
    ]
    return Transcript(spoken(tokenizer, hypothesis.ids), words, tokens)


def spoken(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a hypothesis: a model may say two spaces in a row, or one at an end."""
    return " ".join(tokenizer.decode(ids).split())


def join_transcripts(parts: Sequence[Transcript], separator: str) -> Transcript:
    """The transcripts of consecutive segments as one; without any, that of a recording without speech."""
    return Transcript(
        separator.join(part.text for part in parts if part.text),
        [word for part in parts for word in part.words],
        [token for part in parts for token in part.tokens],
        min((part.no_speech for part in parts), default=1.0),
    )
