"""Which tokens a parallel decoder is shown."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retort.students.glancing import glance


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_as_many_as_the_share_of_what_is_wrong(
    lengths: list[int], ratio: float, padding: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = max(lengths) + padding
    predicted, tokens = (torch.randint(3, (len(lengths), size), generator=draw) for _ in range(2))
    shown = glance(predicted, tokens, torch.tensor(lengths), ratio, draw)
    for row, length in enumerate(lengths):
        wrong = sum(int(predicted[row, place] != tokens[row, place]) for place in range(length))
        assert int(shown[row].sum()) == math.floor(ratio * wrong)
        assert not shown[row, length:].any()


def test_all_positions_are_shown_as_often_as_each_other() -> None:
    tokens, predicted = torch.zeros(4000, 6, dtype=torch.int64), torch.zeros(4000, 6, dtype=torch.int64)
    predicted[:, :4] = 1  # the last two of five are right, the sixth is padding
    lengths = torch.full((4000,), 5)
    shown = glance(predicted, tokens, lengths, 0.75, torch.Generator().manual_seed(0))
    assert set(shown.sum(1).tolist()) == {3}
    shares = shown.float().mean(0)
    assert shares[:5].tolist() == pytest.approx([0.6] * 5, abs=0.03)
    assert shares[5] == 0
