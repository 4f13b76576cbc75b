"""Tiny teachers' tokenizers, texts for them, and what every list of pieces must hold."""

from __future__ import annotations

import itertools
from typing import Any

from retort.text.tokenizers import Piece

ENGLISH = ["THE CAT SAT ON THE MAT", "DON'T SING THE SONG", "THE SINGING CAT ISN'T SAD", "O'CLOCK THE CLOCK"]
MANDARIN = ["今天天气很好", "我们今天去北京", "北京很大"]
MIXED = ["我爱PYTHON语言", "今天LISTEN音乐", "PYTHON LISTEN 很好"]
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


def check_spans(text: str, pieces: list[Piece]) -> None:
    covered = [index for piece in pieces for index in range(piece.start, piece.end)]
    assert covered == sorted(set(covered))
    assert [index for index in covered if not text[index].isspace()] == [
        index for index, character in enumerate(text) if not character.isspace()
    ]
    assert all(before.end <= after.start for before, after in itertools.pairwise(pieces))
    for piece in pieces:
        surface = text[piece.start : piece.end]
        assert not surface.strip() or surface == surface.strip()
