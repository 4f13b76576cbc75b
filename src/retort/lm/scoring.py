"""How well a language model knows a text, of whatever kind it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retort.common.errors import UserError
from retort.lm.causal import CausalLM
from retort.text.normalise import is_cjk
from retort.text.tokenizers import UNKNOWN

_AT_ONCE = 8192
"""Sentences between two signs of progress."""


@dataclass(frozen=True)
class LmScore:
    """How well a model knows a text.

    A causal model pays for the end of each sentence too: it counts as a piece and as a word in the
    perplexities, as other tools have it. A masked one guesses every piece hidden alone; its perplexities are
    pseudo-perplexities (Salazar et al. 2020), which cannot be compared with those of causal models.

    Attributes:
        sentences: with at least one piece.
        pieces: of all sentences, ends not counted.
        words: between white space; a Han character is one.
        unknown: pieces that stand for something outside the vocabulary.
        perplexity: exp of the mean of the pieces' negative log probability.
        word_perplexity: exp of the sum over all pieces, divided by the number of words.
        top1: share of pieces that were the first guess; of masked models alone.
        word_top1: share of words guessed whole, all pieces of a word hidden at once; of masked models alone.
    """

    sentences: int
    pieces: int
    words: int
    unknown: int
    perplexity: float
    word_perplexity: float
    top1: float | None = None
    word_top1: float | None = None


def score_text(
    model: CausalLM,
    sentences: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LmScore:
    """What a causal model makes of sentences in normal form.

    Args:
        progress: called with the sentences done and their number.

    Raises:
        UserError: there is no piece in `sentences`.
    """
    nll, pieces, unknown, words, ends = 0.0, 0, 0, 0, 0
    for start in range(0, len(sentences), _AT_ONCE):
        texts = sentences[start : start + _AT_ONCE]
        rows = [(text, ids) for text in texts if (ids := model.tokenizer.encode(text))]
        nll -= sum(float(each.double().sum()) for each in model.score([ids for _, ids in rows]))
        pieces += sum(len(ids) for _, ids in rows)
        unknown += sum(ids.count(UNKNOWN) for _, ids in rows)
        words += sum(count_words(text) for text, _ in rows)
        ends += len(rows)
        progress(min(start + _AT_ONCE, len(sentences)), len(sentences))
    if not pieces:
        raise nothing_to_score()
    return LmScore(
        ends, pieces, words, unknown, perplexity(nll / (pieces + ends)), perplexity(nll / (words + ends))
    )


def count_words(text: str) -> int:
    """Words between white space; a Han character is one."""
    return len("".join(f" {each} " if is_cjk(each) else each for each in text).split())


def perplexity(nats: float) -> float:
    """exp, infinite where a float does not hold it."""
    return math.exp(nats) if nats < 700.0 else math.inf


def nothing_to_score() -> UserError:
    """Of a text without a piece."""
    return UserError("no sentence of it has a piece", remedy="Give other text")
