"""Which pieces two vocabularies share, and where a text has them."""

from __future__ import annotations

from typing import Any

from tiny_teachers import ENGLISH, MIXED, byte_pairs, word_piece

from retort.config.schema import TokenizerConfig
from retort.text.matching import matching_places, shared_pieces
from retort.text.teacher_pieces import TeacherReader
from retort.text.tokenizer_io import train_tokenizer
from retort.text.tokenizers import BpeTokenizer, CharacterTokenizer, Piece, Tokenizer


def output(student: Tokenizer, backend: Any, text: str, case: str = "keep") -> list[tuple[str, str]]:
    """Of each matching place, the characters of the text and the teacher's piece."""
    encoding = backend.encode(text.lower() if case == "lower" else text, add_special_tokens=False)
    shared = shared_pieces(student, TeacherReader(backend, case))
    pieces = student.pieces(text)
    places = matching_places(pieces, encoding.ids, encoding.offsets, shared)
    assert all(shared[encoding.ids[there]] == pieces[place].id for place, there in places)
    return [
        (text[pieces[place].start : pieces[place].end], encoding.tokens[there]) for place, there in places
    ]


def plain(backend: Any) -> Any:
    backend.no_truncation()
    backend.no_padding()
    return backend


def test_the_teachers_own_pieces_are_all_shared(teacher: Any) -> None:
    student = train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=teacher)
    backend = plain(teacher.backend_tokenizer)
    shared = shared_pieces(student, TeacherReader(backend))
    assert sorted(shared.values()) == list(range(4, student.size))
    assert {backend.id_to_token(each): student.symbols[own] for each, own in shared.items()} == {
        symbol: symbol for symbol in student.symbols[4:]
    }
    assert output(student, backend, "THE SINGING CAT") == [
        ("THE", "the"), ("SING", "sing"), ("ING", "##ing"), ("CAT", "cat"),
    ]  # fmt: skip


def test_han_characters_are_shared_and_letters_are_not() -> None:
    backend = plain(word_piece([*"今天我爱", "python", "a", "listen"]))
    student = CharacterTokenizer.train([*MIXED, "A"])
    found = output(student, backend, "我爱PYTHON A 今天LISTEN")
    assert found == [("我", "我"), ("爱", "爱"), ("今", "今"), ("天", "天")]
    assert output(student, backend, "语") == []  # unknown to the teacher


def test_byte_pairs_meet_where_they_mean_the_same() -> None:
    texts = ["THE CAT SAT", "THE SINGING CAT", "SINGING THE"] * 3
    student = BpeTokenizer.train(texts, 36)
    assert {"▁THE", "▁CAT"} <= set(student.symbols)
    backend = plain(word_piece(["the", "cat", "##at", "sing", "##ing", "s"]))
    found = output(student, backend, "THE CAT SAT")
    assert found[:2] == [("THE", "the"), ("CAT", "cat")]
    assert all(piece.lower() == token.removeprefix("##") for piece, token in found)


def test_a_teacher_that_marks_the_beginnings_of_words() -> None:
    student = BpeTokenizer.train(["THE CAT SAT ON THE CAT"] * 3, 24)
    backend = byte_pairs()
    assert "▁CAT" in student.symbols
    shared = shared_pieces(student, TeacherReader(backend, "lower"))
    names = {student.symbols[own]: backend.id_to_token(each) for each, own in shared.items()}
    assert names["▁CAT"] == "Ġcat"
    assert names["▁SAT"] == "Ġsat"
    assert "▁ON" not in names  # which the teacher has not


def test_two_of_the_students_for_one_of_the_teachers_are_shared_by_neither() -> None:
    student = BpeTokenizer.train(["the THE cat CAT"] * 4, 30)
    assert {"▁the", "▁THE"} <= set(student.symbols)
    shared = shared_pieces(student, TeacherReader(plain(word_piece(["the", "cat"]))))
    assert not {"▁the", "▁THE"} & {student.symbols[own] for own in shared.values()}


def test_a_place_holds_one_piece_of_each_and_the_same() -> None:
    student = [Piece(5, 0, 2), Piece(6, 2, 6), Piece(7, 7, 11), Piece(8, 11, 12)]
    spans = [(0, 6), (7, 11), (11, 12), (12, 12)]
    assert matching_places(student, [10, 11, 12, 13], spans, {10: 5, 11: 7, 12: 8, 13: 8}) == [(2, 1), (3, 2)]
    assert matching_places(student, [10, 11, 12, 13], spans, {10: 5, 11: 8, 12: 8}) == [(3, 2)]
    # One of the student's under two of the teacher's.
    assert matching_places([Piece(5, 0, 6)], [10, 11], [(0, 2), (2, 6)], {10: 5, 11: 5}) == []
