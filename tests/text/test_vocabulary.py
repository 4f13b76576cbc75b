"""Vocabularies that are read without the packages that tokenise."""

from __future__ import annotations

import pytest

from retort.common.errors import UserError
from retort.text.tokenizers import BpeTokenizer
from retort.text.vocabulary import Vocabulary, sentencepiece_pieces
from tiny_whispers import tiny_tokenizer


def test_pieces_of_a_sentencepiece_model() -> None:
    tokenizer = BpeTokenizer.train(["the quick brown fox", "jumps over the lazy dög"] * 3, 40)
    assert sentencepiece_pieces(tokenizer._files()["tokenizer.model"]) == tokenizer.symbols
    with pytest.raises(ValueError, match=""):
        sentencepiece_pieces(tokenizer._files()["tokenizer.model"][:-2])


def test_the_vocabulary_of_a_tokenizer() -> None:
    theirs = tiny_tokenizer()
    own = Vocabulary.from_str(theirs.to_str())
    size = theirs.get_vocab_size(with_added_tokens=True)
    assert [own.id_to_token(each) for each in range(size + 1)] == [theirs.id_to_token(each) for each in range(size + 1)]
    assert own.get_vocab() == theirs.get_vocab()
    assert own.token_to_id("<|en|>") == theirs.token_to_id("<|en|>")
    added = theirs.get_added_tokens_decoder()
    assert {key: each.special for key, each in own.get_added_tokens_decoder().items()} == {
        key: each.special for key, each in added.items()
    }
    with pytest.raises(UserError, match="decoding"):
        own.encode("a text")
