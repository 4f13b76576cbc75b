"""Synthetic sounds without speech, for which a recogniser must output nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Wave = NDArray[np.float64]

LEAST, MOST = 1.0, 12.0
"""Duration of a clip in seconds."""


class Clip(NamedTuple):
    kind: str
    samples: NDArray[np.float32]
    """`(N,)`, full scale is 1."""


def noise_clips(count: int, sampling_rate: int, seed: int = 0) -> Iterator[Clip]:
    """`count` clips of all kinds in turn, each with its own generator: the same seed gives the same clips.

    Levels differ by 40 dB; a microphone's white noise is added to all clips.
    """
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        draw = np.random.default_rng([seed, number])
        size = int(draw.uniform(LEAST, MOST) * sampling_rate)
        wave = KINDS[kind](size, sampling_rate, draw)
        level = 10 ** draw.uniform(-2.5, -0.5)
        floor = 10 ** draw.uniform(-4.0, -3.0) * draw.standard_normal(size)
        peak = float(np.abs(wave).max()) or 1.0
        yield Clip(kind, np.clip(level * wave / peak + floor, -1.0, 1.0).astype(np.float32))


def _white(size: int, rate: int, draw: Generator) -> Wave:
    return draw.standard_normal(size)


def _coloured(size: int, rate: int, draw: Generator) -> Wave:
    """Power falls with the frequency by 3 to 7 dB per octave: pink to brown."""
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    spectrum = np.fft.rfft(draw.standard_normal(size)) / np.maximum(frequencies, 40.0) ** draw.uniform(
        0.5, 1.2
    )
    return np.fft.irfft(spectrum, size)


def _changing(size: int, rate: int, draw: Generator) -> Wave:
    """Noise whose level moves slowly, as of wind and traffic."""
    points = draw.uniform(-20.0, 0.0, 3 + int(size / rate / draw.uniform(0.3, 2.0)))
    level = np.interp(np.linspace(0, len(points) - 1, size), np.arange(len(points)), points)
    return _coloured(size, rate, draw) * 10 ** (level / 20)


def _hum(size: int, rate: int, draw: Generator) -> Wave:
    """Mains hum with harmonics."""
    times = np.arange(size) / rate
    base = draw.choice([50.0, 60.0])
    return np.sum(
        [
            draw.uniform(0.1, 1.0) / k * np.sin(2 * np.pi * (base * k * times + draw.random()))
            for k in range(1, 12)
        ],
        0,
    )


def _chords(size: int, rate: int, draw: Generator) -> Wave:
    """Three or four notes at once, with harmonics, struck and fading."""
    wave = np.zeros(size)
    start = 0
    while start < size:
        last = min(size, start + int(draw.uniform(0.25, 2.0) * rate))
        root = 110.0 * 2 ** (draw.integers(0, 25) / 12)
        for step in (0, draw.choice([3, 4]), 7, *draw.choice([10, 11, 12], 1)):
            wave[start:last] += _note(root * 2 ** (step / 12), last - start, rate, draw)
        start = last
    return wave


def _melody(size: int, rate: int, draw: Generator) -> Wave:
    """One note after the other, some with a vibrato."""
    wave = np.zeros(size)
    start = 0
    while start < size:
        last = min(size, start + int(draw.choice([0.15, 0.25, 0.5, 1.0]) * rate))
        wave[start:last] = _note(220.0 * 2 ** (draw.integers(0, 30) / 12), last - start, rate, draw)
        start = last
    return wave


def _note(pitch: float, size: int, rate: int, draw: Generator) -> Wave:
    times = np.arange(size) / rate
    phase = pitch * times + draw.choice([0.0, 0.5]) * np.sin(2 * np.pi * draw.uniform(4.0, 7.0) * times)
    harmonics = [
        draw.uniform(0.2, 1.0) / k * np.sin(2 * np.pi * k * phase)
        for k in range(1, 7)
        if k * pitch < rate / 2
    ]
    envelope = np.minimum(times / 0.01, 1.0) * np.exp(-times * draw.uniform(0.3, 5.0))
    return np.asarray(np.sum(harmonics, 0) * envelope)


def _bangs(size: int, rate: int, draw: Generator) -> Wave:
    """Claps, knocks and slammed doors."""
    wave = np.zeros(size)
    for _ in range(draw.integers(1, 5)):
        start = int(draw.integers(0, size))
        times = np.arange(size - start) / rate
        burst = np.exp(-times / draw.uniform(0.005, 0.12)) * draw.uniform(0.3, 1.0)
        tone = np.sin(2 * np.pi * draw.uniform(60.0, 500.0) * times)
        wave[start:] += burst * (draw.standard_normal(size - start) if draw.random() < 0.6 else tone)
    return wave


def _beeps(size: int, rate: int, draw: Generator) -> Wave:
    """A telephone's tones, an alarm."""
    times = np.arange(size) / rate
    tones = sum(
        np.sin(2 * np.pi * pitch * times) for pitch in draw.uniform(350.0, 2000.0, draw.integers(1, 3))
    )
    gate = (times * draw.uniform(0.3, 3.0) + draw.random()) % 1.0 < draw.uniform(0.3, 0.8)
    return np.asarray(tones * gate)


KINDS: dict[str, Callable[[int, int, Generator], Wave]] = {
    "white noise": _white,
    "coloured noise": _coloured,
    "changing noise": _changing,
    "hum": _hum,
    "chords": _chords,
    "melody": _melody,
    "bangs": _bangs,
    "beeps": _beeps,
    "quiet room": lambda size, rate, draw: np.zeros(size),
}
"""`(samples, sampling rate, generator)` to a wave of any level."""
