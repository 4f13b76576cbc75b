"""Alignment of student pieces and teacher pieces through character spans.

The two vocabularies may differ: characters, BPE and word pieces all have half-open character spans of
the same text, and only the overlap of spans is used.
"""

from __future__ import annotations

from collections.abc import Sequence

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
