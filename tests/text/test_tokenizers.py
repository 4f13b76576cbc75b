from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_teachers import (
    ENGLISH,
    HAN,
    MANDARIN,
    MIXED,
    WORDS,
    check_spans,
    fast,
    word_piece,
)

from retort.common.errors import UserError
from retort.config.schema import TokenizerConfig
from retort.text import tokenizers as module
from retort.text.tokenizer_io import open_tokenizer, train_tokenizer
from retort.text.tokenizers import (
    BLANK,
    EOS,
    PAD,
    UNKNOWN,
    BpeTokenizer,
    CharacterTokenizer,
    Piece,
    Tokenizer,
    Word,
    WordTokenizer,
)


def make(kind: str, texts: list[str], teacher: Any, size: int | None = None) -> Tokenizer:
    if kind == "bpe":
        size = size or 4 + len(set("".join(texts)) | {" "}) + 6
    return train_tokenizer(texts, TokenizerConfig(kind=kind, size=size), teacher=teacher)


KINDS = ("characters", "bpe", "teacher")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [ENGLISH, MANDARIN, MIXED[:2]], ids=["english", "mandarin", "mixed"])
def test_round_trip(kind: str, texts: list[str], teacher: Any, tmp_path: Path) -> None:
    tokenizer = make(kind, texts, teacher)
    tokenizer.save(tmp_path / "sub" / "folder")
    opened = open_tokenizer(tmp_path / "sub" / "folder")
    assert opened.symbols == tokenizer.symbols
    for text in ["", *texts]:
        for each in (tokenizer, opened):
            ids = each.encode(text)
            assert each.decode(ids) == text
            assert [piece.id for piece in each.pieces(text)] == ids
            assert all(UNKNOWN < id < each.size for id in ids)
            assert each.unknown(text) == []
            check_spans(text, each.pieces(text))


@pytest.mark.parametrize("kind", KINDS)
def test_words(kind: str, teacher: Any) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    text = "THE CAT ISN'T SINGING"
    ids = [BLANK, *tokenizer.encode(text), EOS, PAD]
    words = tokenizer.words(ids)
    assert [word.text for word in words] == text.split()
    assert words[0].first >= 1
    assert words[-1].last == len(ids) - 3
    assert all(before.last < after.first for before, after in itertools.pairwise(words))
    for word in words:
        assert tokenizer.decode(ids[word.first : word.last + 1]).strip() == word.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_han_character_is_a_word(kind: str, teacher: Any) -> None:
    tokenizer = make(kind, MIXED[:2], teacher)
    words = tokenizer.words(tokenizer.encode(MIXED[0]))
    assert [word.text for word in words] == ["我", "爱", "PYTHON", "语", "言"]
    assert words == sorted(words, key=lambda word: (word.first, word.last))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown(kind: str, teacher: Any) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    text = "THE 猫 SAT"
    assert tokenizer.unknown(text) == ["猫"]
    assert tokenizer.decode(tokenizer.encode(text)) == "THE ⁇ SAT"
    assert tokenizer.encode(text).count(UNKNOWN) == 1
    check_spans(text, tokenizer.pieces(text))


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_add_nothing_and_wrong_ids_are_refused(kind: str, teacher: Any) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    ids = tokenizer.encode("THE CAT")
    assert tokenizer.decode([BLANK, *ids, EOS, PAD, PAD]) == "THE CAT"
    assert tokenizer.decode(np.array(ids)) == "THE CAT"
    assert tokenizer.words([BLANK, EOS, PAD]) == []
    for bad in (-1, tokenizer.size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([bad])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("THECA'S 今é\u0301▁⁇\u200bﬁ[]#<k>\t"), max_size=12))
def test_spans_of_any_text(kind: str, text: str) -> None:
    tokenizer = _any_text_tokenizers()[kind]
    pieces = tokenizer.pieces(text)
    check_spans(text, pieces)
    assert tokenizer.encode(text) == [piece.id for piece in pieces]
    assert not {BLANK, PAD, EOS} & set(tokenizer.encode(text))
    words = tokenizer.words(tokenizer.encode(text))
    assert "".join(word.text for word in words) == "".join(tokenizer.decode(tokenizer.encode(text)).split())


_CACHE: dict[str, Tokenizer] = {}


def _any_text_tokenizers() -> dict[str, Tokenizer]:
    if not _CACHE:
        teacher = fast(word_piece(WORDS + HAN + ["c", "##a", "##s", "s", "e"]))
        _CACHE.update({kind: make(kind, [*ENGLISH, *MANDARIN], teacher) for kind in KINDS})
    return _CACHE


@pytest.mark.parametrize("kind", ["characters", "bpe"])
@pytest.mark.parametrize("text", ["THE  CAT", " THE CAT ", "  ", "T"])
def test_spaces_are_kept(kind: str, text: str, teacher: Any) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    check_spans(text, tokenizer.pieces(text))


def test_characters_by_frequency_then_code_point(teacher: Any) -> None:
    tokenizer = make("characters", ["BBA A", "CA"], teacher)
    assert tokenizer.symbols == ["<blank>", "<pad>", "<eos>", "<unk>", "A", "B", "▁", "C"]
    assert tokenizer.pieces("A D") == [Piece(4, 0, 1), Piece(6, 1, 2), Piece(UNKNOWN, 2, 3)]
    assert tokenizer.words([6, 4, 5, 6, 7]) == [Word("AB", 1, 2), Word("C", 4, 4)]


def test_bpe_pieces_and_prefix(teacher: Any, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [*ENGLISH * 3, "猫"]
    tokenizer = make("bpe", texts, teacher, size=35)
    assert tokenizer.size == 35
    assert tokenizer.pieces("THE CAT")[0] == Piece(tokenizer.symbols.index("▁THE"), 0, 3)
    prefix, cat = tokenizer.pieces("猫")
    assert prefix == Piece(tokenizer.symbols.index("▁"), 0, 0)
    assert (cat.start, cat.end) == (0, 1)
    assert tokenizer.words([prefix.id, cat.id]) == [Word("猫", 1, 1)]
    again = make("bpe", texts, teacher, size=35)
    assert again.symbols == tokenizer.symbols
    assert capfd.readouterr() == ("", "")


def test_bpe_sizes_out_of_reach_are_reported(teacher: Any) -> None:
    with pytest.raises(UserError, match=r"size is 5000, but .* no more than (\d+) pieces") as caught:
        make("bpe", ENGLISH, teacher, size=5000)
    largest = int(str(caught.value).split()[-3])
    assert make("bpe", ENGLISH, teacher, size=largest).size == largest
    with pytest.raises(UserError, match=r"need (\d+)") as caught:
        make("bpe", ENGLISH, teacher, size=8)
    smallest = int(str(caught.value).split()[-3])
    assert make("bpe", ENGLISH, teacher, size=smallest).size == smallest
    with pytest.raises(UserError, match=r"tokenizer\.size is not set"):
        train_tokenizer(ENGLISH, TokenizerConfig(kind="bpe"))


def test_bpe_does_not_take_text_for_special_ids(teacher: Any) -> None:
    for texts in (ENGLISH, [*ENGLISH, "<unk> <pad> <eos> <blank>"]):
        tokenizer = make("bpe", texts, teacher)
        text = "<pad> THE <eos><blank>"
        assert not {BLANK, PAD, EOS} & set(tokenizer.encode(text))
        assert "THE" in tokenizer.decode(tokenizer.encode(text))
        check_spans(text, tokenizer.pieces(text))


@pytest.mark.parametrize("kind", ["characters", "teacher"])
def test_size_must_be_what_was_found(kind: str, teacher: Any) -> None:
    found = make(kind, ENGLISH, teacher).size
    assert make(kind, ENGLISH, teacher, size=found).size == found
    with pytest.raises(UserError, match=rf"tokenizer.size is 4234, but the training text has {found}"):
        make(kind, ENGLISH, teacher, size=4234)


def test_training_mistakes_are_reported() -> None:
    for texts in ([], ["", "  "]):
        with pytest.raises(UserError, match="training text for the tokenizer is empty"):
            train_tokenizer(texts, TokenizerConfig("characters"))
    with pytest.raises(
        UserError, match=r"tokenizer\.kind is 'words'\. Choose characters, bpe or teacher"
    ):
        train_tokenizer(ENGLISH, TokenizerConfig("words"))
    with pytest.raises(UserError, match=r"Set tokenizer\.teacher"):
        train_tokenizer(ENGLISH, TokenizerConfig("teacher"))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_damaged_files_are_reported(kind: str, teacher: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json: no such file"):
        open_tokenizer(tmp_path)
    make(kind, ENGLISH, teacher).save(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert not any(name.endswith(".partial") for name in files)
    for name in files:
        whole = (tmp_path / name).read_bytes()
        for content in (b"", b"junk", whole[: len(whole) // 2]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match="damaged tokenizer") as caught:
                open_tokenizer(tmp_path)
            assert "\n" not in str(caught.value)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: no such file"):
            open_tokenizer(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert open_tokenizer(tmp_path).kind == kind


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"symbols": ["AB"]}, {"symbols": ["A", "A"]}, {"symbols": None}]
)
def test_wrong_content_is_reported(change: dict[str, Any], tmp_path: Path) -> None:
    CharacterTokenizer.train(ENGLISH).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="damaged tokenizer"):
        open_tokenizer(tmp_path)
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match=r"format (is )?99"):
        open_tokenizer(tmp_path)


def test_bpe_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    BpeTokenizer.train(ENGLISH, 30).save(tmp_path / "a")
    BpeTokenizer.train(ENGLISH, 31).save(tmp_path / "b")
    (tmp_path / "a" / "tokenizer.model").write_bytes((tmp_path / "b" / "tokenizer.model").read_bytes())
    with pytest.raises(UserError, match="31 pieces"):
        open_tokenizer(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_workers_can_receive_a_tokenizer(kind: str, teacher: Any) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(ENGLISH[0]) == tokenizer.encode(ENGLISH[0])


def test_words_by_frequency(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.train(["THE CAT SAT", "THE CAT", "THE DOG"], 7)
    assert tokenizer.symbols[4:] == ["THE", "CAT", "DOG"]
    tokenizer.save(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert opened.symbols == tokenizer.symbols
    assert opened.fingerprint() == tokenizer.fingerprint()
    assert WordTokenizer(["CAT", "THE", "DOG"]).fingerprint() != tokenizer.fingerprint()
    text = "THE DOG SAT THE"
    check_spans(text, opened.pieces(text))
    assert opened.unknown(text) == ["SAT"]
    assert opened.decode([*opened.encode(text), EOS]) == "THE DOG ⁇ THE"


@given(st.text(st.sampled_from("ab \t\n\x1c\x85\xa0\u2003\u200b\ufeff"), max_size=12))
def test_words_are_cut_quickly_as_they_are_cut_slowly(text: str) -> None:
    tokenizer = WordTokenizer(["a", "ab"])
    assert tokenizer.encode(text) == [piece.id for piece in tokenizer.pieces(text)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_is_of_the_vocabulary(kind: str, teacher: Any, tmp_path: Path) -> None:
    tokenizer = make(kind, ENGLISH, teacher)
    tokenizer.save(tmp_path)
    assert open_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()
    assert make(kind, MANDARIN, teacher).fingerprint() != tokenizer.fingerprint()


def test_combining_marks_belong_to_the_word_before() -> None:
    tokenizer = CharacterTokenizer.train(["カ\u3099 我e\u0301b \u0301a"])
    words = tokenizer.words(tokenizer.encode("カ\u3099我e\u0301b \u0301a"))
    assert [word.text for word in words] == ["カ\u3099", "我", "e\u0301b", "\u0301a"]
    assert module.SPECIAL[UNKNOWN] == tokenizer.symbols[UNKNOWN]
