from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.audio.segments import LONG_PAUSE, MARGIN, Segment, segments
from retort.audio.speech import open_detector
from retort.common.errors import UserError

RATE = 16000
Parts = Iterable[tuple[str, float]]


def recording(*parts: tuple[str, float], noise: float = 3e-4, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Parts are ("speech", "far" or "pause", seconds); speech is voiced syllables of changing pitch."""
    draw = np.random.default_rng(seed)
    levels = {"speech": 0.2, "far": 0.01, "pause": 0.0}
    waves = []
    for kind, seconds in parts:
        times = np.arange(round(seconds * rate)) / rate
        syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * times)
        phase = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * 0.9 * times)) / rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 20))
        waves.append(levels[kind] * syllables * voice)
    wave = np.concatenate(waves)
    return (wave + noise * draw.standard_normal(len(wave))).astype(np.float32)


def divided(
    wave: np.ndarray, longest: float = 30.0, block: int = 0, kind: str = "energy", rate: int = RATE
) -> list[Segment]:
    blocks = [wave] if not block else [wave[at : at + block] for at in range(0, len(wave), block)]
    return list(segments(blocks, rate, open_detector(kind, rate), longest, keep_silence=kind == "none"))


def seconds(found: Iterable[Segment], rate: int = RATE) -> list[tuple[float, float]]:
    return [(each.start / rate, each.end / rate) for each in found]


def check(found: list[Segment], wave: np.ndarray, longest: float) -> None:
    end = 0
    for each in found:
        assert end <= each.start < each.end <= len(wave)
        assert each.end - each.start <= longest * RATE
        np.testing.assert_array_equal(each.samples, wave[each.start : each.end])
        assert all(each.start <= start < last <= each.end for start, last in each.speech)
        assert all(one.end <= other.start for one, other in pairwise(each.speech))
        end = each.end


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3e-3])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_silence_around_speech_is_left_out_at_every_length(noise: float, gain: float) -> None:
    wave = gain * recording(("pause", 6.0), ("speech", 2.0), ("pause", 7.0), noise=noise)
    (found,) = divided(wave.astype(np.float32))
    assert found.start / RATE == pytest.approx(6.0 - MARGIN, abs=0.1)
    assert found.end / RATE == pytest.approx(8.0 + MARGIN, abs=0.15)
    assert found.speech[0].start / RATE == pytest.approx(6.0, abs=0.1)
    assert found.speech[-1].end / RATE == pytest.approx(8.0, abs=0.1)


def test_a_sentence_in_minutes_of_silence_is_found() -> None:
    wave = recording(("pause", 61.0), ("speech", 1.5), ("pause", 57.0))
    ((start, end),) = seconds(divided(wave))
    assert start == pytest.approx(61.0 - MARGIN, abs=0.1)
    assert end == pytest.approx(62.5 + MARGIN, abs=0.15)


def test_a_loud_noise_does_not_hide_speech_nor_pass_for_it() -> None:
    wave = recording(("pause", 8.0), ("far", 2.0), ("pause", 6.0))
    times = np.arange(RATE // 2) / RATE
    bang = 0.9 * np.exp(-times / 0.03) * np.random.default_rng(3).standard_normal(len(times))
    wave[4 * RATE : 4 * RATE + len(bang)] += bang.astype(np.float32)
    ((start, end),) = seconds(divided(wave))
    assert start == pytest.approx(8.0 - MARGIN, abs=0.15)
    assert end == pytest.approx(10.0 + MARGIN, abs=0.25)


def test_a_far_speaker_is_found_next_to_a_near_one() -> None:
    found = divided(recording(("speech", 4.0), ("pause", 3.0), ("far", 4.0), ("pause", 3.0), ("speech", 4.0)))
    assert [round(start + MARGIN) for start, _ in seconds(found)[1:]] == [7, 14]


def background(kind: str, count: int) -> np.ndarray:
    draw, times = np.random.default_rng(5), np.arange(count) / RATE
    if kind == "hum":
        return 0.1 * np.sum([np.sin(2 * np.pi * 50 * k * times) / k for k in (1, 2, 3, 5)], 0)
    wave = draw.standard_normal(count)
    if kind == "pink":
        spectrum = np.fft.rfft(wave) / np.sqrt(np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40))
        wave = np.fft.irfft(spectrum, count)
    if kind == "step":
        wave[count // 2 :] *= 6
    return 0.02 * wave / wave.std()


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "step"])
@pytest.mark.parametrize("length", [3.0, 25.0])
def test_steady_noise_is_no_speech(kind: str, length: float) -> None:
    wave = background(kind, int(length * RATE)) + 1e-4 * np.random.default_rng(1).standard_normal(
        int(length * RATE)
    )
    if kind != "step" or length > 12.0:
        assert divided(wave.astype(np.float32)) == []


@pytest.mark.parametrize("kind", ["white", "pink", "hum"])
def test_speech_is_found_in_noise(kind: str) -> None:
    wave = recording(("pause", 7.0), ("speech", 3.0), ("pause", 7.0))
    (found,) = divided((wave + background(kind, len(wave))).astype(np.float32))
    assert found.start / RATE == pytest.approx(7.0 - MARGIN, abs=0.3)
    assert found.end / RATE == pytest.approx(10.0 + MARGIN, abs=0.4)


def test_zeros_are_no_background() -> None:
    noisy = recording(("pause", 8.0), ("speech", 2.0), ("pause", 8.0), noise=3e-3)
    wave = np.concatenate([np.zeros(7 * RATE, np.float32), noisy, np.zeros(9 * RATE, np.float32)])
    ((start, end),) = seconds(divided(wave))
    assert start == pytest.approx(15.0 - MARGIN, abs=0.1)
    assert end == pytest.approx(17.0 + MARGIN, abs=0.15)


@pytest.mark.parametrize(
    "wave", [np.zeros(0), np.zeros(5), np.zeros(40 * RATE)], ids=["none", "few", "zeros"]
)
def test_nothing_gives_no_segment_but_a_short_recording_is_kept(wave: np.ndarray) -> None:
    assert len(divided(wave.astype(np.float32))) == (0 < len(wave) < RATE)


def test_a_short_recording_without_a_background_is_kept() -> None:
    times = np.arange(RATE) / RATE
    vowel = (0.3 - 0.2 * times) * np.sin(2 * np.pi * 200 * times)
    ((start, end),) = seconds(divided(vowel.astype(np.float32)))
    assert (start, end) == (0.0, pytest.approx(1.0, abs=0.06))
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    assert divided(noise.astype(np.float32)) == []


def test_long_pauses_divide_and_short_ones_do_not() -> None:
    wave = recording(
        ("speech", 3.0),
        ("pause", LONG_PAUSE - 0.5),
        ("speech", 3.0),
        ("pause", LONG_PAUSE + 0.7),
        ("speech", 2.0),
    )
    assert len(divided(wave)) == 2


def test_long_speech_is_cut_in_the_longest_pause_of_the_second_half() -> None:
    wave = recording(
        ("speech", 3.0), ("pause", 1.2), ("speech", 2.3), ("pause", 0.5), ("speech", 1.2), ("pause", 0.9),
        ("speech", 1.0), ("pause", 0.4), ("speech", 4.0),
    )  # fmt: skip
    first, second = divided(wave, longest=10.5)
    assert 8.1 < first.end / RATE < 9.1
    assert 8.1 < second.start / RATE < 9.1
    check([first, second], wave, 10.5)


def test_without_a_pause_the_quietest_moment_is_the_cut() -> None:
    wave = recording(("speech", 16.0))
    wave[round(7.3 * RATE) : round(7.36 * RATE)] *= 0.003
    found = divided(wave, longest=10.0)
    check(found, wave, 10.0)
    assert found[0].end / RATE == pytest.approx(7.33, abs=0.05)
    assert found[1].start == found[0].end


def test_one_second_is_the_least() -> None:
    with pytest.raises(ValueError, match=r"0\.5"):
        divided(recording(("speech", 2.0)), longest=0.5)


def test_a_kept_silence_is_in_one_segment_each() -> None:
    wave = recording(("pause", 25.0), ("speech", 4.0), ("pause", 20.0), ("speech", 3.0), ("pause", 8.0))
    found = divided(wave, longest=12.0, kind="none")
    check(found, wave, 12.0)
    np.testing.assert_array_equal(np.concatenate([each.samples for each in found]), wave)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["speech", "far", "pause"]), st.floats(0.05, 9.0)), min_size=1, max_size=8
    ),
    st.floats(1.0, 12.0),
    st.integers(1, 60000),
    st.sampled_from(["energy", "none"]),
)
def test_segments_do_not_depend_on_the_blocks(
    parts: list[tuple[str, float]], longest: float, block: int, kind: str
) -> None:
    wave = recording(*parts)
    whole = divided(wave, longest, kind=kind)
    check(whole, wave, longest)
    for one, other in zip(whole, divided(wave, longest, max(block, 800), kind), strict=True):
        assert (one.start, one.end, one.speech) == (other.start, other.end, other.speech)


@pytest.mark.parametrize("rate", [8000, 22050])
def test_other_sampling_rates(rate: int) -> None:
    wave = recording(("pause", 4.0), ("speech", 2.0), ("pause", 4.0), rate=rate)
    (found,) = divided(wave, rate=rate)
    assert found.start / rate == pytest.approx(4.0 - MARGIN, abs=0.1)


def test_samples_of_a_long_recording_are_not_held() -> None:
    block = recording(("pause", 2.0), ("speech", 6.0))
    given_samples = 0
    largest = 0

    def blocks() -> Iterable[np.ndarray]:
        nonlocal given_samples
        for _ in range(40):
            given_samples += len(block)
            yield block

    for each in segments(blocks(), RATE, open_detector("energy", RATE), 10.0):
        largest = max(largest, given_samples - each.start)
    assert largest < 40 * RATE


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(UserError, match="energy"):
        open_detector("loud", RATE)


@pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="the extra vad is not installed",
)
def test_the_packaged_network_gives_the_same_in_any_blocks() -> None:
    wave = recording(("pause", 3.0), ("speech", 3.0), ("pause", 4.0))
    found = divided(wave, kind="silero")
    assert seconds(found) == seconds(divided(wave, kind="silero", block=777))
    assert divided(recording(("pause", 5.0)), kind="silero") == []
    with pytest.raises(UserError, match="16000"):
        open_detector("silero", 8000)
