"""Whisper's pieces as a vocabulary: exact spans, every text, smaller vocabularies, prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import EOS, SPECIAL, UNKNOWN
from retort.text.whisper_pieces import WhisperTokenizer
from tiny_whispers import tiny_tokenizer

TEXTS = ["the shower", "a", "", "don't tell", "naïve çà", "他们说 the", "<|en|> the", "a  b"]


def tokenizer(size: int | None = None, texts: tuple[str, ...] = ("the shell",), language: str = "en") -> WhisperTokenizer:
    return WhisperTokenizer.train(texts, tiny_tokenizer(), language, size, (3, 4), (32,))


@pytest.mark.parametrize("size", [None, 4 + 256 + 5])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_and_spans_cover_it(text: str, size: int | None) -> None:
    made = tokenizer(size)
    pieces = made.pieces(text)
    assert made.decode(piece.id for piece in pieces) == text
    assert not made.unknown(text)
    held = [index for piece in pieces for index in range(piece.start, piece.end)]
    spoken = [index for index, character in enumerate(text) if not character.isspace()]
    assert [index for index in held if not text[index].isspace()] == spoken
    for piece in pieces:
        inner = text[piece.start : piece.end]
        assert inner == inner.strip() or not inner.strip()


def test_a_smaller_vocabulary_takes_the_commonest_pieces_of_more_texts() -> None:
    def pieces(*more: str) -> set[str]:
        made = WhisperTokenizer.train(("a",), tiny_tokenizer(), "en", 4 + 256 + 3, more_texts=more)
        return {symbol for symbol in made.symbols[len(SPECIAL) :] if len(symbol) > 1}

    assert pieces("all", "low tell", "low") == {"Ġa", "ll", "ow"}
    assert pieces("shell", "she", "the") >= {"Ġa", "Ġs"}
    assert len(pieces()) == 3


def test_pieces_are_whispers_own() -> None:
    made, backend = tokenizer(), tiny_tokenizer()
    for text in ("the shower", "tell"):
        own = [made.pieces_of_whisper[each] for each in made.encode(text)]
        assert own == backend.encode(" " + text).ids


def test_words_have_the_pieces_that_made_them() -> None:
    made = tokenizer()
    ids = made.encode("the show 他")
    words = made.words(ids)
    assert [word.text for word in words] == ["the", "show", "他"]
    assert words[0].first == 0
    assert words[-1].last == len(ids) - 1


def test_special_ids_are_those_of_whisper() -> None:
    made, backend = tokenizer(), tiny_tokenizer()
    assert made.pieces_of_whisper[EOS] == backend.token_to_id("<|endoftext|>")
    assert made.prompt == [
        backend.token_to_id(name) for name in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    assert len(tokenizer(language="").prompt) == 2
    assert made.surfaces([EOS, UNKNOWN, *made.encode("a")]) == ["", "⁇", " a"] or made.decode([EOS]) == ""


def test_what_the_text_has_is_not_suppressed() -> None:
    without, backend = tokenizer(), tiny_tokenizer()
    symbol = without.symbols[without.suppressed[0]]
    assert backend.token_to_id(symbol) in (3, 4)
    text = bytes(without.spellings[without.suppressed[0]]).decode("utf-8", "ignore")
    assert without.suppressed[0] not in tokenizer(texts=(f"a{text}",)).suppressed


@pytest.mark.parametrize("size", [None, 4 + 256 + 5])
def test_saved_and_opened(tmp_path: Path, size: int | None) -> None:
    made = tokenizer(size)
    made.save(tmp_path)
    again = open_tokenizer(tmp_path)
    assert isinstance(again, WhisperTokenizer)
    assert again.fingerprint() == made.fingerprint()
    assert again.encode("the shower") == made.encode("the shower")
    assert (again.prompt, again.suppressed) == (made.prompt, made.suppressed)
    assert again.size == made.size == (size or made.size)


@pytest.mark.parametrize(("size", "language"), [(100, "en"), (10_000, "en"), (None, "xx")])
def test_what_cannot_be_is_one_line(size: int | None, language: str) -> None:
    with pytest.raises(UserError):
        tokenizer(size, language=language)
