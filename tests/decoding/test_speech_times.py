from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.decoding.speech_times import within_speech
from retort.decoding.transcript import TimedText, Transcript

SPEECH = [(5.6, 7.7), (14.7, 16.4)]


def moved(start: float, end: float, speech: list[tuple[float, float]] = SPEECH) -> tuple[float, float]:
    word = TimedText("a", start, end, 1.0)
    found = within_speech(Transcript("a", [word], [word]), speech)
    assert found.tokens == found.words
    return found.words[0].start, found.words[0].end


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((6.0, 6.5), (6.0, 6.5)),  # in the speech
        ((0.0, 6.0), (5.6, 6.0)),  # the first word does not begin before it is spoken
        ((7.5, 15.0), (14.7, 15.0)),  # nor does one after a pause
        ((7.0, 7.75), (7.0, 7.75)),  # a token may end a little late
        ((7.0, 9.0), (7.0, 7.8)),  # but not over the pause
        ((8.0, 9.0), (7.8, 7.8)),
        ((8.0, 14.0), (14.7, 14.7)),
        ((1.0, 2.0), (5.6, 5.6)),
        ((17.0, 20.0), (16.5, 16.5)),
    ],
)
def test_a_word_lies_in_the_speech(times: tuple[float, float], expected: tuple[float, float]) -> None:
    assert moved(*times) == pytest.approx(expected)


def test_a_short_gap_is_within_a_word() -> None:
    assert moved(1.0, 2.0, [(0.9, 1.5), (1.6, 2.1)]) == (1.0, 2.0)


def test_without_ranges_times_stay() -> None:
    assert moved(1.0, 2.0, []) == (1.0, 2.0)


@given(st.lists(st.floats(0.0, 20.0), min_size=2, max_size=12), st.lists(st.floats(0.0, 20.0), max_size=8))
def test_times_never_descend(times: list[float], edges: list[float]) -> None:
    times, edges = sorted(times), sorted(set(edges))
    speech = list(zip(edges[::2], edges[1::2]))
    words = [TimedText("a", start, end, 1.0) for start, end in itertools.pairwise(times)]
    found = within_speech(Transcript("", words, words), speech).words
    flat = [time for word in found for time in (word.start, word.end)]
    assert flat == sorted(flat)
