from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from retort.common.errors import UserError
from retort.lm.scoring import count_words, perplexity, score_text
from retort.text.tokenizers import CharacterTokenizer


class Sure:
    """Every piece has probability 1/2, every end 1/4."""

    tokenizer = CharacterTokenizer(list("▁abc"))

    def score(self, sentences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [torch.tensor([0.5] * len(each) + [0.25]).log() for each in sentences]


def score(*sentences: str) -> Any:
    return score_text(Sure(), sentences)  # type: ignore[arg-type]


def test_ends_count_as_pieces_and_as_words() -> None:
    found = score("ab c", "", "a", "x")
    assert (found.sentences, found.pieces, found.words, found.unknown) == (3, 6, 4, 1)
    nats = (6 + 2 * 3) * math.log(2)
    assert found.perplexity == pytest.approx(math.exp(nats / 9))
    assert found.word_perplexity == pytest.approx(math.exp(nats / 7))
    assert found.top1 is found.word_top1 is None


def test_text_without_a_piece_is_one_line() -> None:
    with pytest.raises(UserError, match="no sentence contains a token"):
        score("", "")


def test_words() -> None:
    assert [count_words(text) for text in ("one two", "", "中文 abc", "a中b")] == [2, 0, 3, 3]
    assert perplexity(1e4) == math.inf
