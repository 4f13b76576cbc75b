"""Turns of speech in a stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from retort.serving.turns import LONGEST_TURN, Started, Stopped, Turns

Spoken = Callable[..., np.ndarray]
RATE = 16000


def quiet(seconds: float, seed: int = 0) -> np.ndarray:
    return (1e-3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def run(turns: Turns, wave: np.ndarray, size: int) -> list[Started | Stopped]:
    return [event for start in range(0, len(wave), size) for event in turns.add(wave[start : start + size])]


@pytest.mark.parametrize("size", [100, 1600, 10**6])
def test_turns_are_parts_of_the_stream(spoken: Spoken, size: int) -> None:
    wave = np.concatenate([quiet(1), spoken(1, 6), quiet(1, 1), spoken(2, 6), quiet(1, 2)])
    turns = Turns(RATE)
    events = run(turns, wave, size)
    assert [type(event) for event in events] == [Started, Stopped] * 2
    assert turns.position == len(wave)
    for started, stopped in zip(events[::2], events[1::2]):
        assert isinstance(stopped, Stopped)
        assert started.start == stopped.start
        np.testing.assert_array_equal(
            wave[stopped.start : stopped.start + len(stopped.samples)], stopped.samples
        )


def test_noise_and_silence_have_no_turns() -> None:
    for seed in range(3):
        assert run(Turns(RATE), quiet(8, seed), 1600) == []
    assert run(Turns(RATE), np.zeros(8 * RATE, np.float32), 1600) == []


def test_a_long_turn_is_cut(spoken: Spoken) -> None:
    wave = np.concatenate([quiet(0.5), *(spoken(seed, 12)[3000:-3000] for seed in range(5)), quiet(1)])
    assert len(wave) > 1.05 * LONGEST_TURN * RATE
    stopped = [each for each in run(Turns(RATE), wave, 1600) if isinstance(each, Stopped)]
    assert len(stopped) >= 2
    assert all(len(each.samples) <= (LONGEST_TURN + 0.5) * RATE for each in stopped)
    ends = [each.start + len(each.samples) for each in stopped]
    assert all(later.start >= end for end, later in zip(ends, stopped[1:]))


def test_what_is_taken_is_what_was_added_since(spoken: Spoken) -> None:
    turns = Turns(RATE)
    wave = spoken(3, 6)
    run(turns, wave, 1600)
    assert len(turns.current()) > 0
    taken = turns.take()
    np.testing.assert_array_equal(wave[taken.start :], taken.samples)
    assert turns.start is None
    assert len(turns.take().samples) == 0


def test_a_stream_gets_no_samples_without_speech(spoken: Spoken) -> None:
    """It would recognise words in them; a turn that was not decided yet is not lost."""
    for wave in (quiet(3), np.zeros(3 * RATE, np.float32)):
        turns = Turns(RATE, streamed=True)
        assert run(turns, wave, 1600) == []
        taken = turns.take()
        assert (taken.end, len(taken.samples)) == (len(wave), 0)
    turns, speech = Turns(RATE, streamed=True), spoken(3, 6)
    loudest = int(np.abs(speech).argmax())
    wave = np.concatenate([quiet(2), speech[max(loudest - 1500, 0) :][:3000]])  # less than until the next decision
    assert turns.add(wave) == []
    taken = turns.take()
    assert len(taken.samples) > 0
    np.testing.assert_array_equal(taken.samples, wave[taken.start :])
