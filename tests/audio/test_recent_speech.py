"""Scores of moving windows are those of a detector that reads each window alone."""

from __future__ import annotations

import numpy as np
import pytest

from retort.audio.recent_speech import RecentScores
from retort.audio.speech import chunks, open_detector


def alone(window: np.ndarray, rate: int) -> np.ndarray:
    detector = open_detector("energy", rate)
    return np.concatenate(
        [*(detector.accept(each) for each in chunks([window], detector.chunk)), detector.finish()]
    )


def bursts(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Noise whose loudness changes every 150 ms; some of it is digital silence."""
    random = np.random.default_rng(seed)
    steps = random.choice([0.0, 0.0, 1e-3, 1e-2, 0.3], round(seconds / 0.15) + 1)
    loudness = np.repeat(steps, round(0.15 * rate))[: round(seconds * rate)]
    return (random.standard_normal(len(loudness)) * loudness).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
@pytest.mark.parametrize("rest", [0, 53])
def test_moving_windows(rate: int, rest: int) -> None:
    random, hop = np.random.default_rng(rate + rest), rate // 100
    for seed in range(3):
        wave, recent, end = bursts(9.0, rate, seed), RecentScores("energy", rate), 0
        for step in [*random.choice([0, 10, 20, 37], 8), 500, *random.choice([0, 10, 20, 37], 8)]:
            end = min(end + step * hop, len(wave) - rest)
            offset = max(0, end - 6 * rate) // hop * hop
            window = wave[offset : end + rest]
            if len(window):
                np.testing.assert_array_equal(recent(window, offset)[1], alone(window, rate))


@pytest.mark.parametrize("size", [1, 200, 400, 401, 800, 801, 960])
def test_short_windows(size: int) -> None:
    wave = bursts(0.1, 16000, 3)[:size] + np.float32(1e-4)
    np.testing.assert_array_equal(RecentScores("energy", 16000)(wave, 0)[1], alone(wave, 16000))


def test_windows_that_are_apart() -> None:
    wave, recent = bursts(9.0, 16000, 1), RecentScores("energy", 16000)
    for begin, end in ((0, 16000), (64000, 112000), (64001, 112000), (96000, 140000)):
        np.testing.assert_array_equal(recent(wave[begin:end], begin)[1], alone(wave[begin:end], 16000))
