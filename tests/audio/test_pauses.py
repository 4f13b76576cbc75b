from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.audio.pauses import LONG_PAUSE, MARGIN, cut_at_pauses

RATE = 8000


def recording(*parts: tuple[str, float], noise: float = 1e-3, seed: int = 0) -> np.ndarray:
    """Parts are ("speech", "far" or "pause", seconds); speech is noise whose level moves as syllables do."""
    random = np.random.default_rng(seed)
    levels = {"speech": 0.2, "far": 0.02, "pause": 0.0}
    waves = []
    for kind, seconds in parts:
        count = round(seconds * RATE)
        syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(count) / RATE)
        waves.append(levels[kind] * syllables * random.standard_normal(count))
    wave = np.concatenate(waves)
    return (wave + noise * random.standard_normal(len(wave))).astype(np.float32)


def seconds(pieces: list[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(first / RATE, last / RATE) for first, last in pieces]


def check_ranges(pieces: list[tuple[int, int]], length: int, longest: float) -> None:
    end = 0
    for first, last in pieces:
        assert end <= first < last <= length
        assert last - first <= longest * RATE
        end = last


@pytest.mark.parametrize("duration", [0.001, 1.0, 29.999, 30.0])
def test_a_short_recording_is_one_piece(duration: float) -> None:
    wave = recording(("pause", duration / 2), ("speech", duration / 2))
    assert cut_at_pauses(wave, RATE) == [(0, len(wave))]


def test_no_samples_no_piece() -> None:
    assert cut_at_pauses(np.zeros(0, np.float32), RATE) == []


def test_one_second_is_the_least() -> None:
    with pytest.raises(ValueError, match=r"0\.5"):
        cut_at_pauses(recording(("speech", 2.0)), RATE, longest=0.5)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
def test_the_longest_pause_of_the_second_half_is_the_cut(noise: float) -> None:
    wave = recording(
        ("speech", 3.0), ("pause", 1.5), ("speech", 2.0), ("pause", 0.4), ("speech", 1.2), ("pause", 0.8),
        ("speech", 1.0), ("pause", 0.3), ("speech", 4.0), noise=noise,
    )  # fmt: skip
    pieces = seconds(cut_at_pauses(wave, RATE, longest=10.5))
    assert len(pieces) == 2
    assert pieces[0][1] == pytest.approx(8.5, abs=0.06)  # the middle of the pause of 0.8 s
    assert pieces[1] == (pieces[0][1], len(wave) / RATE)


def test_a_pause_of_the_first_half_is_better_than_a_cut_in_speech() -> None:
    wave = recording(("speech", 1.0), ("pause", 0.3), ("speech", 1.5), ("pause", 0.3), ("speech", 8.0))
    first, *_ = seconds(cut_at_pauses(wave, RATE, longest=10.0))
    assert first[1] == pytest.approx(2.95, abs=0.06)  # of two the later


@pytest.mark.parametrize("seed", range(5))
def test_speech_is_not_cut_while_there_are_pauses(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts: list[tuple[str, float]] = []
    for _ in range(40):
        parts += [("speech", random.uniform(0.5, 4.0)), ("pause", random.uniform(0.25, 1.5))]
    wave = recording(*parts, seed=seed)
    ends = np.cumsum([duration for _, duration in parts])
    pauses = [(ends[index - 1], ends[index]) for index in range(1, len(parts), 2)]
    pieces = cut_at_pauses(wave, RATE, longest=12.0)
    check_ranges(pieces, len(wave), 12.0)
    assert pieces[0][0] == 0
    for (_, cut), (start, _) in pairwise(pieces):
        assert cut == start
        assert any(first - 0.03 < cut / RATE < last + 0.03 for first, last in pauses)
    assert len(pieces) <= 2 * len(wave) / RATE / 12.0 + 1


def test_without_a_pause_the_quietest_moment_is_the_cut() -> None:
    wave = recording(("speech", 16.0), noise=1e-3)
    dip = slice(round(7.3 * RATE), round(7.4 * RATE))  # shorter than a pause
    wave[dip] *= 0.01
    pieces = cut_at_pauses(wave, RATE, longest=10.0)
    check_ranges(pieces, len(wave), 10.0)
    assert pieces[0][1] / RATE == pytest.approx(7.35, abs=0.05)
    assert pieces[-1][1] == len(wave)


@pytest.mark.parametrize("wave", [np.zeros(25 * RATE, np.float32), np.sin(np.arange(25 * RATE) * 0.3)])
def test_a_level_that_never_changes_gives_full_pieces(wave: np.ndarray) -> None:
    pieces = cut_at_pauses(wave.astype(np.float32), RATE, longest=10.0)
    check_ranges(pieces, len(wave), 10.0)
    assert len(pieces) == 3
    assert sum(last - first for first, last in pieces) == len(wave)


def test_long_silence_is_left_out_but_for_margins() -> None:
    wave = recording(("pause", 5.0), ("speech", 4.0), ("pause", 20.0), ("speech", 3.0), ("pause", 8.0))
    pieces = seconds(cut_at_pauses(wave, RATE, longest=15.0))
    expected = [(5.0 - MARGIN, 9.0 + MARGIN), (29.0 - MARGIN, 32.0 + MARGIN)]
    assert np.abs(np.array(pieces) - expected).max() < 0.06


def test_silence_shorter_than_a_long_pause_stays() -> None:
    wave = recording(("speech", 6.0), ("pause", LONG_PAUSE - 0.3), ("speech", 6.0))
    pieces = cut_at_pauses(wave, RATE, longest=10.0)
    assert sum(last - first for first, last in pieces) == len(wave)


def test_a_far_speaker_is_kept() -> None:
    wave = recording(
        ("speech", 10.0), ("pause", 0.5), ("far", 10.0), ("pause", 0.5), ("speech", 10.0), noise=5e-4
    )
    pieces = cut_at_pauses(wave, RATE, longest=12.0)
    assert sum(last - first for first, last in pieces) == len(wave)


def test_an_offset_is_not_loudness() -> None:
    parts = (("speech", 6.0), ("pause", 0.5), ("speech", 6.0))
    assert cut_at_pauses(recording(*parts) + 0.5, RATE, 10.0) == cut_at_pauses(recording(*parts), RATE, 10.0)


def test_the_level_of_the_recording_does_not_matter() -> None:
    wave = recording(("speech", 6.0), ("pause", 0.5), ("speech", 6.0), ("pause", 3.0), ("speech", 6.0))
    assert cut_at_pauses(wave * 0.01, RATE, 10.0) == cut_at_pauses(wave, RATE, 10.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["speech", "far", "pause"]), st.floats(0.02, 9.0)), min_size=1, max_size=12
    ),
    st.floats(1.0, 12.0),
    st.integers(0, 3),
)
def test_ranges_are_ascending_short_and_hold_all_speech(
    parts: list[tuple[str, float]], longest: float, seed: int
) -> None:
    wave = recording(*parts, seed=seed)
    pieces = cut_at_pauses(wave, RATE, longest)
    check_ranges(pieces, len(wave), longest)
    kept = np.zeros(len(wave), bool)
    for first, last in pieces:
        kept[first:last] = True
    position = 0
    for kind, duration in parts:
        count = round(duration * RATE)
        if kind == "speech":
            assert kept[position : position + count].all()
        position += count
