"""Fires that start again from each token, against sums over frames in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.streaming.attended import DELAY, LEAST, AttendedFires

WEIGHTS = st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), min_size=1, max_size=30)


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3))


def expected(hidden: np.ndarray, weights: list[float], start: float) -> tuple[np.ndarray, float]:
    """The token whose weight begins at `start`."""
    position, vector, total, time = 0.0, np.zeros(3), 0.0, float(len(weights))
    end = min(start + 1.0, sum(weights))
    for frame, weight in enumerate(weights):
        share = max(min(position + weight, end) - max(position, start), 0.0)
        vector, total = vector + share * hidden[frame], total + share
        if share > 1e-12 and time == len(weights) and position + weight >= end - 1e-12:
            time = frame + (end - position) / weight
        position += weight
    return (vector / total, time) if total > 1e-9 else (hidden[-1], float(len(weights)))


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, cut=st.integers(0, 30), middles=st.lists(st.integers(0, 29), max_size=3))
def test_tokens_are_those_of_the_sums(weights: list[float], cut: int, middles: list[int]) -> None:
    fires, hidden = AttendedFires(), vectors(len(weights))
    for part in (slice(None, cut), slice(cut, None)):
        if len(hidden[part]):
            fires.add(hidden[part], np.array(weights[part]))
    start = 0.0
    for middle in [None, *middles]:
        if middle is not None:
            frame = middle % len(weights)
            fires.attended(frame)
            start = max(sum(weights[:frame]) + weights[frame] / 2 + 0.5, start + LEAST)
        rest = sum(weights) - start
        if 0.0 < abs(rest) < 1e-6:  # rounding decides
            return
        vector, time = fires.next()
        wanted, end = expected(hidden, weights, start)
        np.testing.assert_allclose(vector, wanted)
        assert time == pytest.approx(end)
        if abs(rest - 1.0 - DELAY) > 1e-6:
            assert fires.ready == (rest >= 1.0 + DELAY)


def test_a_token_that_is_recognised_twice_moves_on() -> None:
    fires = AttendedFires()
    fires.add(vectors(40), np.full(40, 0.25))
    count = 0
    while fires.ready and count < 100:
        fires.attended(2)
        count += 1
    assert count <= 10 / LEAST


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError):
        AttendedFires().add(vectors(2), np.array([0.1, np.nan]))
