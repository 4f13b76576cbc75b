"""Alignment of student pieces and teacher pieces through character spans.

The two vocabularies may differ: characters, BPE and word pieces all have half-open character spans of
the same text, and only the overlap of spans is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from retort.text.normalise import is_cjk

Span = tuple[int, int]


def align_spans(student: Sequence[Span], teacher: Sequence[Span], length: int | None = None) -> list[Span]:
    """For every student span, the teacher positions that share a character with it; linear time.

    Args:
        student: half-open character spans of the student's pieces.
        teacher: half-open character spans of the teacher's own pieces (without [CLS] and [SEP]), in
            the same text. Both may contain empty spans, which overlap nothing. Spans may overlap
            their neighbours (byte pieces of one character do).
        length: length of the text in characters; if given, no span may end after it.

    Returns:
        One half-open range of 0-based teacher positions for every student span, from the first to the last
        that overlaps it; (0, 0) if none does.

    Raises:
        ValueError: starts or ends of spans decrease, or a span is not inside the text.
    """
    _check_spans(student, "student", length)
    _check_spans(teacher, "teacher", length)
    real = [position for position, (start, end) in enumerate(teacher) if start < end]
    ranges: list[Span] = []
    first = last = 0  # real[first:last] overlap the current student span
    for start, end in student:
        if start == end:
            ranges.append((0, 0))
            continue
        while first < len(real) and teacher[real[first]][1] <= start:
            first += 1
        last = max(first, last)
        while last < len(real) and teacher[real[last]][0] < end:
            last += 1
        ranges.append((real[first], real[last - 1] + 1) if first < last else (0, 0))
    return ranges


def word_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """For every span that is the last one of a word, the span of the whole word; for the others an empty span.

    Words are separated by spaces, and every CJK character is a word.

    Args:
        text: the text of the spans.
        spans: half-open character spans of pieces, in order; some may be empty or include spaces.
    """
    ends: list[tuple[int, Span] | None] = [_last_word(text, span) for span in spans]
    result: list[Span] = []
    following = len(text)  # start of the next word of a later piece
    for word in reversed(ends):
        is_last = word is not None and word[1][1] <= following
        result.append(word[1] if word is not None and is_last else (0, 0))
        following = word[0] if word is not None else following
    return result[::-1]


def _last_word(text: str, span: Span) -> tuple[int, Span] | None:
    """Start of the piece without spaces, and the span of the word of its last character; None for an empty piece."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start == end:
        return None
    first, last = end - 1, end
    if not is_cjk(text[first]):
        while first > 0 and _inside(text[first - 1]):
            first -= 1
        while last < len(text) and _inside(text[last]):
            last += 1
    return start, (first, last)


def _inside(character: str) -> bool:
    return not character.isspace() and not is_cjk(character)


def _check_spans(spans: Sequence[Span], whose: str, length: int | None) -> None:
    before: Span = (0, 0)
    for span in spans:
        start, end = span
        if not 0 <= start <= end or (length is not None and end > length):
            text = f"the text (0, {'its length' if length is None else length})"
            raise ValueError(f"{whose} span ({start}, {end}) is not a span inside {text}")
        if start == end:
            continue
        if start < before[0] or end < before[1]:
            raise ValueError(
                f"{whose} spans are out of order: ({start}, {end}) after ({before[0]}, {before[1]})"
            )
        before = span
