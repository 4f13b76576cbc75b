"""Pieces shared by a teacher's and a student's vocabulary, and their positions in a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from retort.text.alignment import Span, align_spans
from retort.text.normalise import is_cjk
from retort.text.teacher_pieces import TeacherReader, TeacherTokenizer
from retort.text.tokenizers import SPACE, SPECIAL, BpeTokenizer, Piece, Tokenizer, WordTokenizer
from retort.text.whisper_pieces import WhisperTokenizer


def shared_pieces(student: Tokenizer, reader: TeacherReader) -> dict[int, int]:
    """Map teacher pieces to the student's ids of the same pieces, without special ones.

    A student with the teacher's pieces shares all of them. For BPE and Whisper, a piece at the start of a word matches
    one at the start of a word, a piece within a word one within. A whole word (or a symbol of units) matches the same word
    as a piece. A Han character is a piece; other single characters are not, because a teacher has them within longer
    pieces. If two of the student's pieces match the same teacher piece (they differ in case), they are
    not shared.
    """
    found: dict[int, int] = {}
    for own, symbol in enumerate(student.symbols[len(SPECIAL) :], len(SPECIAL)):
        if isinstance(student, TeacherTokenizer):
            each = reader.backend.token_to_id(symbol)
        elif isinstance(student, BpeTokenizer):
            each = reader.piece_of(symbol.removeprefix(SPACE), symbol.startswith(SPACE))
        elif isinstance(student, WhisperTokenizer):
            surface = student.spellings[own].decode("utf-8", "ignore")
            each = reader.piece_of(surface.removeprefix(" "), surface.startswith(" "))
        elif isinstance(student, WordTokenizer):
            each = reader.piece_of(symbol, True)
        else:
            each = reader.piece_of(symbol, True) if is_cjk(symbol) else None
        if each is not None and each >= 0:
            found[own] = each
    counts = Counter(found.values())
    return {each: own for own, each in found.items() if counts[each] == 1}


def matching_places(
    student: Sequence[Piece],
    teacher: Sequence[int],
    spans: Sequence[Span],
    shared: Mapping[int, int],
) -> list[Span]:
    """Pairs of positions in the student's and the teacher's pieces of a text with the same piece.

    Args:
        student: the student's pieces of the text.
        teacher: ids of the teacher's pieces of the text.
        spans: character spans of the teacher's pieces.
        shared: result of :func:`shared_pieces`.
    """
    own = [(start, end) for _, start, end in student]
    forth, back = align_spans(own, spans), align_spans(spans, own)
    return [
        (place, first)
        for place, (first, last) in enumerate(forth)
        if last - first == 1
        and back[first] == (place, place + 1)
        and shared.get(teacher[first]) == student[place].id
    ]
