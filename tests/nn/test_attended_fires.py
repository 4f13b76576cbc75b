"""Fires that start again from each token, against sums over frames in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.nn.attended_fires import DELAY, LEAST, AttendedFires
from retort.nn.cif import NotFiniteError

WEIGHTS = st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), min_size=1, max_size=30)


def vectors(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def expected(hidden: torch.Tensor, weights: list[float], start: float) -> tuple[torch.Tensor, float]:
    """The token whose weight begins at `start`."""
    position, vector, total, time = 0.0, torch.zeros(3, dtype=torch.float64), 0.0, float(len(weights))
    end = min(start + 1.0, sum(weights))
    for frame, weight in enumerate(weights):
        share = max(min(position + weight, end) - max(position, start), 0.0)
        vector, total = vector + share * hidden[frame], total + share
        if share and position + weight >= end - 1e-12:
            time = frame + (end - position) / weight
        position += weight
    return (vector / total, time) if total > 1e-9 else (hidden[-1], float(len(weights)))


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, cut=st.integers(0, 30), middles=st.lists(st.integers(0, 29), max_size=3))
def test_tokens_are_those_of_the_sums(weights: list[float], cut: int, middles: list[int]) -> None:
    fires, hidden = AttendedFires(), vectors(len(weights))
    for part in (slice(None, cut), slice(cut, None)):
        if len(hidden[part]):
            fires.add(hidden[part], torch.tensor(weights[part], dtype=torch.float64))
    start = 0.0
    for middle in [None, *middles]:
        if middle is not None:
            frame = middle % len(weights)
            fires.attended(frame)
            start = max(sum(weights[:frame]) + weights[frame] / 2 + 0.5, start + LEAST)
        vector, time = fires.next()
        wanted, end = expected(hidden, weights, start)
        torch.testing.assert_close(vector, wanted)
        assert time == pytest.approx(end)
        if abs(sum(weights) - start - 1.0 - DELAY) > 1e-6:
            assert fires.ready == (sum(weights) >= start + 1.0 + DELAY)


def test_a_token_that_is_recognised_twice_moves_on() -> None:
    fires = AttendedFires()
    fires.add(vectors(40), torch.full((40,), 0.25))
    count = 0
    while fires.ready and count < 100:
        fires.attended(2)
        count += 1
    assert count <= 10 / LEAST


def test_weights_are_checked() -> None:
    with pytest.raises(NotFiniteError):
        AttendedFires().add(vectors(2), torch.tensor([0.1, float("nan")]))
