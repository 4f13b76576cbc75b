"""Transcripts as SubRip (`.srt`) and WebVTT (`.vtt`) subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from retort.decoding.transcript import TimedText, Transcript

LONGEST_LINE = 42
"""Characters in one subtitle, the usual limit of broadcasters."""
LONGEST_PAUSE = 1.0
"""Seconds of silence after which a new subtitle begins."""
SHORTEST = 0.001
"""Seconds; WebVTT allows no subtitle that ends where it starts."""


def to_srt(transcript: Transcript, separator: str = " ") -> str:
    """SubRip text, with decimal commas and numbered subtitles."""
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_lines(transcript.words, separator), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(transcript: Transcript, separator: str = " ") -> str:
    """WebVTT text, with its header; `&`, `<` and `>` are escaped, as the format asks."""
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text, quote=False)}\n"
        for start, end, text in _lines(transcript.words, separator)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


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
