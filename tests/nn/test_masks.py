from __future__ import annotations

import torch

from retort.nn.masks import attention_mask, valid_mask


def test_valid_mask_is_true_before_each_length() -> None:
    mask = valid_mask(torch.tensor([0, 2, 4]), 4)
    expected = [[False] * 4, [True, True, False, False], [True] * 4]
    assert mask.tolist() == expected


def test_attention_mask_broadcasts_over_heads_and_queries() -> None:
    mask = attention_mask(torch.tensor([1, 3]), 3)
    assert mask.shape == (2, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, False, False], [True, True, True]]


def test_an_empty_utterance_may_attend_to_its_first_key() -> None:
    assert attention_mask(torch.tensor([0]), 3)[0, 0, 0].tolist() == [True, False, False]
