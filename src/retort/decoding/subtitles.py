"""Transcripts as SubRip (`.srt`) and WebVTT (`.vtt`) subtitles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple, TypeAlias

from retort.decoding.transcript import TimedText, Transcript

LONGEST_LINE = 42
"""Characters in one subtitle, the usual limit of broadcasters."""
LONGEST_PAUSE = 1.0
"""Seconds of silence after which a new subtitle begins."""
SHORTEST = 0.001
"""Seconds; WebVTT allows no subtitle that ends where it starts."""


Spoken: TypeAlias = Transcript | Mapping[int, Transcript]
"""A transcript, or one for each channel of a recording."""


class _Subtitle(NamedTuple):
    start: float
    end: float
    channel: int | None
    """None where the recording has one transcript."""
    text: str


def to_srt(spoken: Spoken, separator: str = " ") -> str:
    """SubRip text, with decimal commas and numbered subtitles; those of a channel begin with its number."""
    blocks = []
    for number, (start, end, channel, text) in enumerate(_subtitles(spoken, separator), start=1):
        name = "" if channel is None else f"[channel {channel}] "
        blocks.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{name}{text}\n")
    return "\n".join(blocks)


def to_vtt(spoken: Spoken, separator: str = " ") -> str:
    """WebVTT text, with its header; `&`, `<` and `>` are escaped, as the format asks; a channel is a voice."""
    blocks = ["WEBVTT\n"]
    for start, end, channel, text in _subtitles(spoken, separator):
        voice = "" if channel is None else f"<v channel {channel}>"
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{voice}{escape(text, quote=False)}\n")
    return "\n".join(blocks)


def _subtitles(spoken: Spoken, separator: str) -> list[_Subtitle]:
    if isinstance(spoken, Transcript):
        return [_Subtitle(start, end, None, text) for start, end, text in _lines(spoken.words, separator)]
    return sorted(
        _Subtitle(start, end, channel, text)
        for channel, transcript in spoken.items()
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
