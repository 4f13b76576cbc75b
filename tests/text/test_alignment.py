from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.text.alignment import Span, align_spans, word_spans


def quadratic(student: list[Span], teacher: list[Span]) -> list[Span]:
    ranges = []
    for start, end in student:
        overlapping = [
            position
            for position, (left, right) in enumerate(teacher)
            if any(left <= character < right for character in range(start, end))
        ]
        ranges.append((overlapping[0], overlapping[-1] + 1) if overlapping else (0, 0))
    return ranges


@st.composite
def spans(draw: st.DrawFn, length: int = 20) -> list[Span]:
    """Ordered spans with gaps, overlaps of neighbours and empty ones anywhere."""
    points = st.lists(st.integers(0, length), max_size=12)
    starts, ends = sorted(draw(points)), sorted(draw(points))
    result = [(start, max(start, end)) for start, end in zip(starts, ends)]
    for place, at in draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, length)), max_size=4)):
        result.insert(place, (at, at))
    return result


@settings(deadline=None, max_examples=400)
@given(spans(), spans())
def test_as_the_quadratic_reference(student: list[Span], teacher: list[Span]) -> None:
    assert align_spans(student, teacher, 20) == quadratic(student, teacher)


def test_characters_against_words() -> None:
    text = "THE CAT"
    characters = [(index, index + 1) for index in range(len(text))]
    assert align_spans(characters, [(0, 3), (4, 7)]) == [(0, 1)] * 3 + [(0, 0)] + [(1, 2)] * 3


def test_bpe_with_its_space_against_word_pieces() -> None:
    # "UNFAIR GAMES": student _UN FAIR _ GAME S, teacher un ##fair games
    student = [(0, 2), (2, 6), (6, 7), (7, 11), (11, 12)]
    assert align_spans(student, [(0, 2), (2, 6), (7, 12)]) == [(0, 1), (1, 2), (0, 0), (2, 3), (2, 3)]


def test_one_student_piece_over_several_teacher_pieces() -> None:
    assert align_spans([(0, 6), (6, 9)], [(0, 2), (2, 4), (4, 8), (8, 9)]) == [(0, 3), (2, 4)]


def test_mixed_mandarin_and_latin() -> None:
    text = "我爱PYTHON编程"
    teacher = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 9), (9, 10)]  # 我 爱 py ##thon 编 程
    characters = [(index, index + 1) for index in range(len(text))]
    ranges = align_spans(characters, teacher, len(text))
    assert ranges == [(0, 1), (1, 2), (2, 3), (2, 3), (3, 4), (3, 4), (3, 4), (3, 4), (4, 5), (5, 6)]


def test_cut_off_and_dropped_characters_and_empty_spans_have_no_range() -> None:
    assert align_spans([(0, 1), (1, 2), (2, 2), (5, 6)], [(0, 1), (2, 4)]) == [(0, 1), (0, 0), (0, 0), (0, 0)]
    assert align_spans([(0, 3)], []) == [(0, 0)]
    assert align_spans([], [(0, 3)]) == []


def test_pieces_of_one_character_are_all_its_own() -> None:
    assert align_spans([(0, 1), (1, 2)], [(0, 1), (0, 1), (0, 1), (1, 2)]) == [(0, 3), (3, 4)]


@pytest.mark.parametrize("student_is_wrong", [True, False])
@pytest.mark.parametrize("wrong", [[(3, 5), (0, 2)], [(0, 6), (1, 5)]])
def test_spans_that_go_backwards_are_named(wrong: list[Span], student_is_wrong: bool) -> None:
    right = [(0, 6)]
    with pytest.raises(ValueError) as caught:
        align_spans(*((wrong, right) if student_is_wrong else (right, wrong)))
    assert str(wrong[0]) in str(caught.value)
    assert str(wrong[1]) in str(caught.value)
    assert ("student" if student_is_wrong else "teacher") in str(caught.value)


@pytest.mark.parametrize("wrong", [(-1, 2), (3, 2), (4, 8), (8, 8)])
def test_spans_outside_the_text_are_named(wrong: Span) -> None:
    with pytest.raises(ValueError) as caught:
        align_spans([(0, 1)], [wrong], 7)
    assert str(wrong) in str(caught.value)
    assert "(0, 7)" in str(caught.value)


def test_a_very_long_text_is_no_problem() -> None:
    count = 100_000  # 10^10 comparisons if it were quadratic
    student = [(index, index + 1) for index in range(count)]
    teacher = [(index, index + 4) for index in range(0, count, 4)]
    assert align_spans(student, teacher) == [(index // 4, index // 4 + 1) for index in range(count)]


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("a cat", ["a", " c", "at"], ["a", "", "cat"]),
        ("don't go", ["don", "'t", " ", "go"], ["", "don't", "", "go"]),
        ("good morning", ["good mor", "ning"], ["", "morning"]),
        ("你好 ok", ["你", "好", " o", "k"], ["你", "好", "", "ok"]),
        ("x光", ["x", "光"], ["x", "光"]),
        ("", [], []),
    ],
)
def test_words_belong_to_their_last_piece(text: str, pieces: list[str], expected: list[str]) -> None:
    ends = list(itertools.accumulate(map(len, pieces)))
    spans = [(end - len(piece), end) for piece, end in zip(pieces, ends)]
    assert [text[start:end] for start, end in word_spans(text, spans)] == expected


def test_byte_pieces_of_one_character_are_one_word() -> None:
    assert word_spans("好吗", [(0, 1), (0, 1), (1, 2)]) == [(0, 0), (0, 1), (1, 2)]
    assert word_spans("ab", [(0, 1), (1, 1), (1, 2), (2, 2)]) == [(0, 0), (0, 0), (0, 2), (0, 0)]
