"""Scoring with masked language models: pseudo-log-likelihoods, pseudo-perplexities and accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.lm.masked import MaskedBatch, MaskedLM, pad_rows
from retort.lm.scoring import LmScore, nothing_to_score, perplexity
from retort.pretrained.hub import (
    check_frame,
    check_mask_piece,
    longest_input,
    open_masked_lm,
    open_tokenizer,
)
from retort.text.normalise import is_cjk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.int64]
_AT_ONCE = 256
"""Sentences whose masked copies are sorted by length together."""


@dataclass(frozen=True)
class MaskedScores:
    """Scores of the tokens of a sentence, in order, without special tokens.

    Attributes:
        nll: negative log-probability of each, in nats, float64.
        correct: whether it was the most probable token.
    """

    nll: NDArray[np.float64]
    correct: NDArray[np.bool_]


def open_masked_scorer(name: str) -> tuple[MaskedLM, PreTrainedTokenizerFast, int]:
    """Open a masked language model by Hugging Face name or folder; returns it, its tokenizer and its maximum length.

    Raises:
        UserError: it cannot be found or opened, or is not a masked language model.
    """
    tokenizer = open_tokenizer(name)
    check_frame(tokenizer, name)
    check_mask_piece(tokenizer, name)
    model = open_masked_lm(name)
    return MaskedLM(model), tokenizer, longest_input(model, tokenizer)


def score_sentences(
    model: MaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[str],
    longest: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LmScore:
    """Score sentences with every token masked in turn, and with every word masked in turn.

    Args:
        sentences: sentences in the form that the model reads.
        longest: maximum number of tokens including special ones; longer sentences are truncated.
        progress: called with the number of sentences done and the total.

    Raises:
        UserError: there is no token in `sentences`.
    """
    nll, unknown, known, correct, words, whole = 0.0, 0, 0, 0, 0, 0
    pieces = 0
    for start in range(0, len(sentences), _AT_ONCE):
        texts = list(sentences[start : start + _AT_ONCE])
        encoded = tokenizer(texts, truncation=True, max_length=longest, return_offsets_mapping=True)
        rows = [np.array(ids) for ids in encoded["input_ids"]]
        alone = [np.arange(len(ids) - 2) for ids in rows]
        by_word = [
            # By its last character: some tokenizers include the space before a token.
            word_numbers(text, [max(last - 1, 0) for _, last in spans[1:-1]])
            for text, spans in zip(texts, encoded["offset_mapping"])
        ]
        for ids, each in zip(rows, score_masked(model, tokenizer, rows, alone)):
            nll += float(each.nll.sum())
            correct += int(each.correct.sum())
            pieces += len(each.nll)
            known += len(each.nll) > 0
            unknown += int((ids[1:-1] == tokenizer.unk_token_id).sum())
        for numbers, each in zip(by_word, score_masked(model, tokenizer, rows, by_word)):
            hits = [each.correct[numbers == number].all() for number in np.unique(numbers)]
            words += len(hits)
            whole += sum(map(bool, hits))
        progress(min(start + _AT_ONCE, len(sentences)), len(sentences))
    if not pieces:
        raise nothing_to_score()
    return LmScore(
        known,
        pieces,
        words,
        unknown,
        perplexity(nll / pieces),
        perplexity(nll / words),
        correct / pieces,
        whole / words,
    )


@torch.no_grad()
def score_masked(
    model: MaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Ids],
    groups: Sequence[Ids],
    pieces: int = 4096,
) -> list[MaskedScores]:
    """Score every token of every sentence once, masked together with the tokens of its group.

    The model is set to evaluation mode; an active autocast is used.

    Args:
        sentences: ids of `[CLS] tokens [SEP]`.
        groups: group number of each token, without special tokens; the tokens of a group are masked together,
            in one row of a batch.
        pieces: maximum number of tokens per forward pass, including padding.
    """
    results = [MaskedScores(np.zeros(len(each)), np.zeros(len(each), bool)) for each in groups]
    for batch, targets, log_probs in hidden_posteriors(model, tokenizer, sentences, groups, pieces):
        nll = -log_probs.gather(-1, targets[:, None])[:, 0].cpu().numpy()
        correct = (log_probs.argmax(-1) == targets).cpu().numpy()
        start = 0
        for index, positions in batch:
            stop = start + len(positions)
            results[index].nll[positions] = nll[start:stop]
            results[index].correct[positions] = correct[start:stop]
            start = stop
    return results


@torch.no_grad()
def hidden_posteriors(
    model: MaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Ids],
    groups: Sequence[Ids],
    pieces: int = 4096,
) -> Iterator[tuple[list[tuple[int, Ids]], Tensor, Tensor]]:
    """Distributions of masked tokens, batch by batch; arguments as in :func:`score_masked`.

    A token with a negative group number is never masked.

    Yields:
        The rows of a batch, each a sentence index and the positions (from 0) that were masked; then for all
        masked tokens, row by row, the targets `(M,)` and the log-probabilities `(M, V)` float64.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = [
        (index, np.flatnonzero(numbers == number))
        for index, numbers in enumerate(groups)
        for number in np.unique(numbers[numbers >= 0])
    ]
    rows.sort(key=lambda row: len(sentences[row[0]]), reverse=True)
    for batch in _cut(rows, [len(sentences[index]) for index, _ in rows], pieces):
        ids, mask = pad_rows([sentences[index] for index, _ in batch], tokenizer.pad_token_id or 0)
        chosen = torch.zeros_like(mask)
        for row, (_, positions) in enumerate(batch):
            chosen[row, torch.from_numpy(positions) + 1] = True
        hidden = MaskedBatch(ids.masked_fill(chosen, tokenizer.mask_token_id), mask, chosen, ids[chosen]).to(
            device
        )
        yield batch, hidden.targets, model(hidden.ids, hidden.mask, hidden.chosen).double().log_softmax(-1)


def fixed_masks(sentences: Sequence[Ids], share: float) -> list[Ids]:
    """Groups for :func:`score_masked` that mask about `share` of a sentence at a time; deterministic."""
    rows = round(1 / share)
    return [
        np.random.default_rng(index).permutation(len(ids) - 2) % rows for index, ids in enumerate(sentences)
    ]


def word_numbers(text: str, places: Sequence[int]) -> Ids:
    """Index, from 0, of the word that contains each of the given characters.

    Words are separated by white space; a Han character is one word.
    """
    number, before, numbers = -1, " ", []
    for character in text:
        boundary = before.isspace() or is_cjk(before) or is_cjk(character)
        number += boundary and not character.isspace()
        numbers.append(number)
        before = character
    return np.array([numbers[place] for place in places], np.int64)


def _cut(rows: list[tuple[int, Ids]], lengths: Sequence[int], pieces: int) -> Iterator[list[tuple[int, Ids]]]:
    """Batches of rows, longest first, of at most `pieces` tokens with padding."""
    start = 0
    while start < len(rows):
        stop = start + max(pieces // lengths[start], 1)
        yield rows[start:stop]
        start = stop
