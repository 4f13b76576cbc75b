"""Moves the times of tokens and words into the detected speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from retort.decoding.transcript import TimedText, Transcript

Seconds: TypeAlias = tuple[float, float]

PAUSE = 0.4
"""A word does not span a longer stretch without speech, in seconds; shorter ones are closures of stops."""
LATE = 0.1
"""A token may end at most this many seconds after the end of the speech."""


def within_speech(transcript: Transcript, speech: Sequence[Seconds]) -> Transcript:
    """Move all times of a transcript out of the pauses.

    A token or word is assigned to the range of speech in which it ends, or else to the nearest one, and is
    clipped to it.

    Args:
        speech: ranges `[start, end)` in seconds of the recording, ascending; if empty, nothing changes.
    """
    ranges = _joined(speech)
    if not ranges:
        return transcript
    tokens, words = (
        [_moved(each, ranges) for each in times] for times in (transcript.tokens, transcript.words)
    )
    return replace(transcript, tokens=tokens, words=words)


def _joined(speech: Sequence[Seconds]) -> list[Seconds]:
    ranges: list[Seconds] = []
    for start, end in speech:
        if ranges and start - ranges[-1][1] < PAUSE:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def _moved(timed: TimedText, ranges: Sequence[Seconds]) -> TimedText:
    before = [each for each in ranges if each[0] < timed.end]
    after = ranges[len(before) :]
    if before and (not after or timed.end - before[-1][1] <= after[0][0] - timed.end):
        start, end = before[-1][0], min(timed.end, before[-1][1] + LATE)
    else:
        start = end = after[0][0]
    return replace(timed, start=min(max(timed.start, start), end), end=end)
