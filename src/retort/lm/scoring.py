"""Perplexities of language models on texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retort.common.errors import UserError
from retort.lm.causal import CausalLM
from retort.text.normalise import is_cjk
from retort.text.tokenizers import UNKNOWN

_AT_ONCE = 8192
"""Sentences between two progress reports."""


@dataclass(frozen=True)
class LmScore:
    """Scores of a model on a text.

    For a causal model the end of each sentence is included and counts as a token and as a word in the
    perplexities, as in other tools. A masked model predicts each token with only that token masked; its
    pseudo-perplexities (Salazar et al. 2020) are not comparable with perplexities of causal models.

    Attributes:
        sentences: sentences with at least one token.
        pieces: number of tokens without sentence ends.
        words: number of words separated by white space; a Han character is one word.
        unknown: number of unknown tokens.
        perplexity: exp of the mean negative log-probability per token.
        word_perplexity: exp of the negative log-probability of all tokens divided by the number of words.
        top1: accuracy of the most probable token; masked models only.
        word_top1: fraction of words whose tokens are all correct when they are masked together; masked models
            only.
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
    """Score normalised sentences with a causal model.

    Args:
        progress: called with the number of sentences done and the total.

    Raises:
        UserError: there is no token in `sentences`.
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
    """Number of words separated by white space; a Han character is one word."""
    return len("".join(f" {each} " if is_cjk(each) else each for each in text).split())


def perplexity(nats: float) -> float:
    """exp; infinite on overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf


def nothing_to_score() -> UserError:
    """The error for a text without tokens."""
    return UserError("no sentence contains a token", remedy="Give another text")
