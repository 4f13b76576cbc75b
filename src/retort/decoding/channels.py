"""Transcripts of recordings with one speaker per channel, such as call centre recordings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from retort.audio.files import MAXIMUM_HOURS, open_audio
from retort.common.errors import BadUtterance
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.transcript import ScoredTranscript, TimedText, Transcript

if TYPE_CHECKING:
    from retort.decoding.transcriber import Transcriber

TURN_PAUSE = 1.0
"""A new turn begins after this many seconds without a word of the same channel."""

log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """A stretch of speech on one channel without a long pause."""

    start: float
    """Seconds."""
    end: float
    channel: int
    """Counted from 0."""
    text: str


def channel_nbest(
    recogniser: Transcriber,
    path: str,
    longest: float,
    options: DecodingOptions = GREEDY,
    maximum_hours: float = MAXIMUM_HOURS,
) -> dict[int, list[ScoredTranscript]]:
    """The n-best list of each channel of a file; times are those of the file.

    A channel that cannot be used (such as a silent one) gets an empty transcript, and the reason is logged.

    Raises:
        UserError: the file cannot be read, or none of its channels can be used.
    """
    found: dict[int, list[ScoredTranscript]] = {}
    failed: dict[int, BadUtterance] = {}
    for channel in range(open_audio(path, maximum_hours=maximum_hours).channels):
        try:
            found[channel] = recogniser.alternatives(path, longest, options, channel, maximum_hours)
        except BadUtterance as error:
            failed[channel] = error
            found[channel] = [ScoredTranscript(Transcript("", [], [], 1.0), 0.0)]
    if len(failed) == len(found):
        raise failed[0]
    for channel, reason in failed.items():
        log.warning("%s: channel %d: %s", path, channel, reason.what)
    return found


def turns(transcripts: Mapping[int, Transcript], separator: str) -> list[Turn]:
    """Turns of all channels, sorted by start time.

    Args:
        transcripts: transcripts by channel.
        separator: separator between words.
    """
    found = []
    for channel, transcript in transcripts.items():
        turn: list[TimedText] = []
        for word in [*transcript.words, None]:
            if turn and (word is None or word.start - turn[-1].end > TURN_PAUSE):
                text = separator.join(each.text for each in turn)
                found.append(Turn(turn[0].start, turn[-1].end, channel, text))
                turn = []
            if word is not None:
                turn.append(word)
    return sorted(found)
