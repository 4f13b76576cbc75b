"""Transcripts with times and confidences of tokens and words, n-best lists, and subtitles."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import NamedTuple, TypeAlias

from retort.decoding.hypothesis import Hypothesis
from retort.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class TimedText:
    """A token or a word with start and end in seconds of the recording and a confidence in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """The text of a recording with its tokens and words in order; times are non-decreasing.

    Attributes:
        no_speech: probability that the recording contains no speech; 1 if no speech was detected.
    """

    text: str
    words: list[TimedText]
    tokens: list[TimedText]
    no_speech: float = 0.0

    def to_json(self) -> str:
        """The transcript as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


def time_hypothesis(
    hypothesis: Hypothesis, tokenizer: Tokenizer, frame_seconds: float, offset: float, duration: float
) -> Transcript:
    """Convert a hypothesis to a transcript with times in seconds.

    A fired token starts at the end of the previous one and ends where it fires. The confidence of a word is
    the product of those of its tokens.

    Args:
        frame_seconds: duration of an encoder frame.
        offset: start of the segment in the recording, seconds.
        duration: duration of the segment; times are limited to it.
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
    return Transcript(hypothesis_text(tokenizer, hypothesis.ids), words, tokens)


def hypothesis_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a hypothesis, without repeated spaces and spaces at the ends."""
    return " ".join(tokenizer.decode(ids).split())


def join_transcripts(parts: Sequence[Transcript], separator: str) -> Transcript:
    """Join the transcripts of consecutive segments; without segments, the transcript of a recording without speech."""
    return Transcript(
        separator.join(part.text for part in parts if part.text),
        [word for part in parts for word in part.words],
        [token for part in parts for token in part.tokens],
        min((part.no_speech for part in parts), default=1.0),
    )


@dataclass(frozen=True)
class ScoredTranscript:
    """A transcript of an n-best list with its ranking score (:class:`retort.decoding.hypothesis.Hypothesis`)."""

    transcript: Transcript
    score: float


def time_candidates(
    candidates: Iterable[Hypothesis],
    most: int,
    tokenizer: Tokenizer,
    frame_seconds: float,
    offset: float,
    duration: float,
) -> list[ScoredTranscript]:
    """Convert the first `most` hypotheses with different texts to transcripts, as :func:`time_hypothesis`.

    Several token sequences may spell the same text; the best of them is used.
    """
    timed = (
        ScoredTranscript(time_hypothesis(each, tokenizer, frame_seconds, offset, duration), each.score)
        for each in candidates
    )
    return _different(timed, most)


def join_nbest(parts: Sequence[Sequence[ScoredTranscript]], separator: str, most: int) -> list[ScoredTranscript]:
    """N-best list of a recording from those of its segments; scores are added.

    Args:
        parts: n-best lists of the segments in order.
        separator: separator between words.
        most: maximum length of the n-best list.
    """
    paths: list[tuple[float, list[Transcript]]] = [(0.0, [])]
    for part in parts:
        grown = [(score + each.score, [*segments, each.transcript]) for score, segments in paths for each in part]
        paths = sorted(grown, key=lambda path: path[0], reverse=True)[:most]
    joined = (ScoredTranscript(join_transcripts(segments, separator), score) for score, segments in paths)
    return _different(joined, most)


def _different(alternatives: Iterable[ScoredTranscript], most: int) -> list[ScoredTranscript]:
    distinct: dict[str, ScoredTranscript] = {}
    for each in alternatives:
        distinct.setdefault(each.transcript.text, each)
        if len(distinct) == most:
            break
    return list(distinct.values())


LONGEST_LINE = 42
"""Maximum number of characters of a subtitle, the usual limit of broadcasters."""
LONGEST_PAUSE = 1.0
"""A new subtitle begins after this many seconds of silence."""
SHORTEST = 0.001
"""Minimum duration in seconds; WebVTT does not allow subtitles of duration 0."""


Transcripts: TypeAlias = Transcript | Mapping[int, Transcript]
"""A transcript, or one for each channel of a recording."""


class _Subtitle(NamedTuple):
    start: float
    end: float
    channel: int | None
    """None if the recording has one transcript."""
    text: str


def to_srt(hypothesis_text: Transcripts, separator: str = " ") -> str:
    """SubRip text, with decimal commas and numbered subtitles; for several channels each subtitle starts with
    the channel's number."""
    blocks = []
    for number, (start, end, channel, text) in enumerate(_subtitles(hypothesis_text, separator), start=1):
        name = "" if channel is None else f"[channel {channel}] "
        blocks.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{name}{text}\n")
    return "\n".join(blocks)


def to_vtt(hypothesis_text: Transcripts, separator: str = " ") -> str:
    """WebVTT text; `&`, `<` and `>` are escaped, and channels are voices."""
    blocks = ["WEBVTT\n"]
    for start, end, channel, text in _subtitles(hypothesis_text, separator):
        voice = "" if channel is None else f"<v channel {channel}>"
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{voice}{escape(text, quote=False)}\n")
    return "\n".join(blocks)


def _subtitles(hypothesis_text: Transcripts, separator: str) -> list[_Subtitle]:
    if isinstance(hypothesis_text, Transcript):
        return [_Subtitle(start, end, None, text) for start, end, text in _lines(hypothesis_text.words, separator)]
    return sorted(
        _Subtitle(start, end, channel, text)
        for channel, transcript in hypothesis_text.items()
        for start, end, text in _lines(transcript.words, separator)
    )


def _lines(words: Sequence[TimedText], separator: str) -> list[tuple[float, float, str]]:
    lines: list[list[TimedText]] = []
    for word in words:
        length = sum(len(each.text) + len(separator) for each in lines[-1]) + len(word.text) if lines else 0
        if not lines or length > LONGEST_LINE or word.start - lines[-1][-1].end > LONGEST_PAUSE:
            lines.append([])
        lines[-1].append(word)
    return [
        (
            line[0].start,
            max(line[-1].end, line[0].start + SHORTEST),
            separator.join(each.text for each in line),
        )
        for line in lines
    ]


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
