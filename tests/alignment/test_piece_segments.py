from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.alignment.alignment import Alignment, Timed
from retort.alignment.unit_text import piece_segments
from retort.common.errors import BadUtterance

Span = tuple[int, int]


def alignment_of(words: list[tuple[str, int, int]], frames: int) -> Alignment:
    return Alignment("u", [Timed(*word) for word in words], [], np.zeros(frames, np.int32))


def test_by_hand() -> None:
    #                  0123456789
    text, timed = "hello cat", [("HELLO", 2, 10), ("CAT", 12, 3)]
    spans = [(0, 2), (2, 5), (6, 9)]
    found = piece_segments(alignment_of(timed, 16), text, spans)
    assert found.tolist() == [-1, -1, *[0] * 4, *[1] * 6, *[2] * 3, -1]
    assert found.dtype == np.int64


def test_more_pieces_than_frames_leave_some_without() -> None:
    found = piece_segments(alignment_of([("abcdef", 0, 2)], 3), "abcdef", [(i, i + 1) for i in range(6)])
    assert found.tolist() == [1, 4, -1]  # those in the middle of each frame


def test_spaces_have_no_frames_and_characters_in_no_piece_neither() -> None:
    timed = [("ab", 0, 4), ("cd", 5, 4)]
    found = piece_segments(alignment_of(timed, 9), "ab cd", [(0, 1), (2, 3), (3, 5)])
    assert found.tolist() == [0, 0, -1, -1, -1, 2, 2, 2, 2]


def test_scripts_without_spaces() -> None:
    timed = [("我", 1, 2), ("爱", 3, 2), ("编程", 5, 4)]
    found = piece_segments(alignment_of(timed, 10), "我爱编程", [(0, 1), (1, 3), (3, 4)])
    assert found.tolist() == [-1, 0, 0, 1, 1, 1, 1, 2, 2, -1]


@pytest.mark.parametrize("text", ["ab", "ab cd ef", "ab ce", ""])
def test_other_words_are_reported(text: str) -> None:
    with pytest.raises(BadUtterance, match="its alignment is of other words: ab cd"):
        piece_segments(alignment_of([("ab", 0, 4), ("cd", 4, 4)], 8), text, [])


@st.composite
def spoken(draw: st.DrawFn) -> tuple[str, list[tuple[str, int, int]], int, list[Span]]:
    words = draw(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4))
    frames, timed = draw(st.integers(0, 3)), []
    for word in words:
        length = draw(st.integers(1, 12))
        timed.append((word, frames, length))
        frames += length + draw(st.integers(0, 3))
    text, spans, start = " ".join(words), [], 0
    for word in words:
        cuts = sorted(draw(st.sets(st.integers(1, len(word)), max_size=3)) | {len(word)})
        spans += [(start + a, start + b) for a, b in zip([0, *cuts], cuts)]
        start += len(word) + 1
    return text, timed, frames, spans


@given(spoken())
def test_a_frame_goes_to_the_piece_in_its_middle(
    case: tuple[str, list[tuple[str, int, int]], int, list[Span]],
) -> None:
    text, timed, frames, spans = case
    expected, start = [-1] * frames, 0
    for word, first, length in timed:
        for frame in range(length):
            character = start + (2 * frame + 1) * len(word) // (2 * length)
            expected[first + frame] = next(i for i, (a, b) in enumerate(spans) if a <= character < b)
        start += len(word) + 1
    found = piece_segments(alignment_of(timed, frames), text, spans)
    assert found.tolist() == expected
    recognised = found[found >= 0]
    assert (np.diff(recognised) >= 0).all()
