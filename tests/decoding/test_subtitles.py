from __future__ import annotations

import html
import re
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.decoding.transcript import LONGEST_LINE, LONGEST_PAUSE, TimedText, Transcript, to_srt, to_vtt


class Cue(NamedTuple):
    start: float
    end: float
    text: str


def seconds(clock: str, mark: str) -> float:
    matched = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(mark)}(\d\d\d)", clock)
    assert matched, clock
    hours, minutes, rest, milliseconds = (int(each) for each in matched.groups())
    return 3600 * hours + 60 * minutes + rest + milliseconds / 1000


def parse_srt(text: str) -> list[Cue]:
    cues = []
    for number, block in enumerate(text.split("\n\n") if text else [], start=1):
        count, times, line = block.rstrip("\n").split("\n")
        assert count == str(number)
        start, end = times.split(" --> ")
        cues.append(Cue(seconds(start, ","), seconds(end, ","), line))
    return cues


def parse_vtt(text: str) -> list[Cue]:
    header, *blocks = text.split("\n\n")
    assert header.rstrip("\n") == "WEBVTT"
    cues = []
    for block in blocks:
        times, line = block.rstrip("\n").split("\n")
        assert "-->" not in line
        assert "<" not in line
        start, end = times.split(" --> ")
        cues.append(Cue(seconds(start, "."), seconds(end, "."), html.unescape(line)))
    return cues


def transcript(words: list[tuple[str, float, float]]) -> Transcript:
    timed = [TimedText(text, start, end, 0.9) for text, start, end in words]
    return Transcript(" ".join(each.text for each in timed), timed, [])


def test_words_of_one_line() -> None:
    given_words = transcript([("hello", 0.5, 0.9), ("world", 0.9, 1.25)])
    assert to_srt(given_words) == "1\n00:00:00,500 --> 00:00:01,250\nhello world\n"
    assert to_vtt(given_words) == "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nhello world\n"


def test_an_empty_transcript() -> None:
    assert parse_srt(to_srt(transcript([]))) == []
    assert to_vtt(transcript([])) == "WEBVTT\n"


def test_a_pause_begins_a_new_subtitle() -> None:
    words = [("a", 0.0, 1.0), ("b", 1.0 + LONGEST_PAUSE, 2.5), ("c", 2.6 + LONGEST_PAUSE, 4.0)]
    assert [cue.text for cue in parse_srt(to_srt(transcript(words)))] == ["a b", "c"]


def test_a_full_line_begins_a_new_subtitle() -> None:
    words = [("x" * 20, float(each), each + 1.0) for each in range(4)]
    assert [cue.text for cue in parse_srt(to_srt(transcript(words)))] == ["x" * 20 + " " + "x" * 20] * 2
    joined = parse_srt(to_srt(transcript([("字", 0.1 * each, 0.1 * each + 0.1) for each in range(43)]), ""))
    assert [len(cue.text) for cue in joined] == [LONGEST_LINE, 1]


def test_times_of_hours_and_roundings() -> None:
    cues = parse_srt(to_srt(transcript([("late", 3599.9996, 36000.0004)])))
    assert cues == [Cue(3600.0, 36000.0, "late")]


@pytest.mark.parametrize("text", ["a<b", "R&D", "-->", "<i>"])
def test_marks_of_webvtt_are_escaped(text: str) -> None:
    assert [cue.text for cue in parse_vtt(to_vtt(transcript([(text, 0.0, 1.0)])))] == [text]


@given(
    st.lists(
        st.tuples(st.text("abc'<&>", min_size=1, max_size=50), st.floats(0.0, 3.0), st.floats(0.0, 2.0)),
        max_size=20,
    )
)
def test_any_words_make_valid_subtitles_in_order(parts: list[tuple[str, float, float]]) -> None:
    words, clock = [], 0.0
    for text, pause, length in parts:
        words.append((text, clock + pause, clock + pause + length))
        clock += pause + length
    spoken = transcript(words)
    cues = parse_srt(to_srt(spoken))
    assert parse_vtt(to_vtt(spoken)) == cues
    assert " ".join(cue.text for cue in cues) == spoken.text
    for cue in cues:
        assert cue.start < cue.end
        assert len(cue.text) <= LONGEST_LINE or " " not in cue.text
    for before, after in pairwise(cues):
        assert before.start <= after.start
        assert before.end <= after.start + 0.0021
