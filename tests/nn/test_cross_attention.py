"""Attention to a memory against loops over heads and keys."""

from __future__ import annotations

import math

import pytest
import torch

from retort.nn.attention import CrossAttention
from retort.nn.masks import attention_mask


@pytest.mark.parametrize("source_dim", [None, 8, 5])
@torch.no_grad()
def test_it_is_the_formula(source_dim: int | None) -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2, 0.0, source_dim).double()
    hidden = torch.randn(2, 3, 8, dtype=torch.float64)
    memory = torch.randn(2, 6, source_dim or 8, dtype=torch.float64)
    lengths = [6, 2]
    keys = torch.randn_like(memory)
    mask = attention_mask(torch.tensor(lengths), 6)
    for given in (None, keys):
        found = layer(hidden, layer.memory(memory, given), mask)
        asked = memory if given is None else given
        for row, length in enumerate(lengths):
            for place in range(3):
                query, parts = layer.query(hidden[row, place]), []
                for own in (slice(0, 4), slice(4, 8)):
                    scores = [
                        float(query[own] @ layer.key(each)[own]) / math.sqrt(4)
                        for each in asked[row, :length]
                    ]
                    total = sum(math.exp(each) for each in scores)
                    parts.append(
                        sum(
                            math.exp(score) / total * layer.value(each)[own]
                            for score, each in zip(scores, memory[row])
                        )
                    )
                torch.testing.assert_close(found[row, place], layer.output(torch.cat(parts)))
