"""Detectors of speech compared: speech with synthetic silence, noise and bangs around it.

    PYTHONPATH=src python benchmarks/speech_detection.py DATA [--utterances N]

DATA is a manifest or Kaldi folder. Two utterances at a time lie in a recording with 6 s before, between and after them.
Printed for each condition and detector: the share of the speech that is in no segment (frames within 25 dB of the
loud ones of the clean utterance), utterances of which less than half is in a segment, and the share of the rest of the
recording (but for half a second next to the utterances) that is in a segment.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from retort.audio.segments import segments
from retort.audio.speech import open_detector
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts

RATE = 16000
Wave = NDArray[np.float64]


def pink(size: int, draw: Generator) -> Wave:
    spectrum = np.fft.rfft(draw.standard_normal(size)) / np.sqrt(
        np.maximum(np.fft.rfftfreq(size, 1 / RATE), 50)
    )
    wave = np.fft.irfft(spectrum, size)
    return wave / wave.std()


def hum(size: int) -> Wave:
    times = np.arange(size) / RATE
    return np.sum([np.sin(2 * np.pi * 50 * k * times) / k for k in (1, 2, 3, 5)], 0)


def bangs(size: int, draw: Generator) -> Wave:
    wave = np.zeros(size)
    for start in range(RATE, size, int(2.5 * RATE)):
        times = np.arange(min(RATE // 2, size - start)) / RATE
        burst = draw.uniform(0.2, 0.8) * np.exp(-times / draw.uniform(0.005, 0.08))
        tone = np.sin(2 * np.pi * draw.uniform(80, 400) * times)
        wave[start : start + len(times)] += burst * (
            draw.standard_normal(len(times)) if draw.random() < 0.6 else tone
        )
    return wave


def far(wave: Wave, draw: Generator) -> Wave:
    """Reverberation of half a second, 30 dB weaker."""
    room = draw.standard_normal(RATE // 2) * 10 ** (-3 * np.linspace(0, 1, RATE // 2))
    room[0] = 3.0
    return 0.03 * fftconvolve(wave, room / np.sqrt(np.square(room).sum()))[: len(wave)]


# Given the recording, where its speech is, and a generator.
CONDITIONS: dict[str, Callable[[Wave, NDArray[np.bool_], Generator], Wave]] = {
    "quiet room": lambda wave, speech, draw: wave + 3e-4 * draw.standard_normal(len(wave)),
    "white noise, 10 dB": lambda wave, speech, draw: (
        wave + 0.32 * wave[speech].std() * draw.standard_normal(len(wave))
    ),
    "white noise, 0 dB": lambda wave, speech, draw: (
        wave + wave[speech].std() * draw.standard_normal(len(wave))
    ),
    "pink noise, 10 dB": lambda wave, speech, draw: wave + 0.32 * wave[speech].std() * pink(len(wave), draw),
    "pink noise, 0 dB": lambda wave, speech, draw: wave + wave[speech].std() * pink(len(wave), draw),
    "hum, 10 dB": lambda wave, speech, draw: wave + 0.32 * wave[speech].std() * hum(len(wave)),
    "bangs in the silence": lambda wave, speech, draw: (
        wave + 3e-4 * draw.standard_normal(len(wave)) + bangs(len(wave), draw) * ~_near(speech, RATE // 2)
    ),
    "40 dB weaker": lambda wave, speech, draw: 0.01 * wave + 1e-5 * draw.standard_normal(len(wave)),
    "far speaker": lambda wave, speech, draw: far(wave, draw) + 2e-4 * draw.standard_normal(len(wave)),
}


def _near(mask: NDArray[np.bool_], samples: int) -> NDArray[np.bool_]:
    edges = np.convolve(mask.astype(float), np.ones(2 * samples + 1), "same")
    return np.asarray(edges > 0.5)


def loud(samples: NDArray[np.float32]) -> NDArray[np.bool_]:
    power = np.convolve(np.square(samples), np.ones(400) / 400, "same")
    return np.asarray(power > np.percentile(power, 95) * 10**-2.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--detectors", nargs="+", default=["energy", "silero"])
    given = parser.parse_args()
    cuts = list(islice(open_cuts(find_data(given.data)).cuts, 0, None, 4))[: given.utterances]
    utterances = [load_samples(cut, RATE).astype(np.float64) for cut in cuts]
    gap = np.zeros(6 * RATE)
    for name, change in CONDITIONS.items():
        cells = []
        for kind in given.detectors:
            missed = spoken = kept = silent = lost = 0
            for number in range(0, len(utterances), 2):
                draw = np.random.default_rng(number)
                parts = [gap, *(each for one in utterances[number : number + 2] for each in (one, gap))]
                wave = np.concatenate(parts)
                speech = np.concatenate(
                    [loud(part) if part.any() else np.zeros(len(part), bool) for part in parts]
                )
                inside = np.repeat([part.any() for part in parts], [len(part) for part in parts])
                noisy = change(wave, speech, draw).astype(np.float32)
                found = np.zeros(len(wave), bool)
                for each in segments([noisy], RATE, open_detector(kind, RATE)):
                    found[each.start : each.end] = True
                rest = ~_near(inside, RATE // 2)
                missed, spoken = missed + int((speech & ~found).sum()), spoken + int(speech.sum())
                kept, silent = kept + int((rest & found).sum()), silent + int(rest.sum())
                places = np.cumsum([0, *map(len, parts)])
                for start, end in zip(places[1::2], places[2::2]):
                    here = slice(start, end)
                    lost += int((speech[here] & found[here]).sum() < 0.5 * speech[here].sum())
            cells.append(
                f"{kind}: missed {missed / spoken:.2%}, lost {lost}, kept silence {kept / silent:.2%}"
            )
        print(f"{name:22s}", " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
