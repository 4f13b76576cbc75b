"""The pieces of a vocabulary that are also the student's, one to one, and where a text has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from retort.text.alignment import Span, align_spans
from retort.text.normalise import is_cjk
from retort.text.teacher_pieces import TeacherReader, TeacherTokenizer
from retort.text.tokenizers import SPACE, SPECIAL, BpeTokenizer, Piece, Tokenizer, WordTokenizer
from retort.text.whisper_pieces import WhisperTokenizer


def shared_pieces(student: Tokenizer, reader: TeacherReader) -> dict[int, int]:
    """The student's id of every teacher piece that is also one of the student's, the special ones left out.

    The student's own teacher shares all of its pieces. Of BPE, Whisper's too, a piece that begins a word meets the
    teacher's that begins one, a piece within a word one within. A whole word (or a symbol of units) meets the same word
    as a piece. A Han character is a piece by itself; other characters are none, for a teacher reads them within longer
    pieces. Two of the student's for one of the teacher's (they differ in case, which the teacher does not see) are
    shared by neither.
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
    """Pairs of places, in the student's pieces of a text and in the teacher's, that hold one and the same piece.

    Args:
        student: its pieces of the text.
        teacher: ids of the teacher's pieces of it.
        spans: of those, in characters of the text.
        shared: of :func:`shared_pieces`.
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
