"""Whisper's log-mel features (Radford et al. 2022, section 2.2) in NumPy, without its padding to 30 seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.audio.fbank import FRAME_SHIFT
from retort.audio.filters import power_spectra
from retort.config.ranges import choice, number
from retort.config.schema import FeatureConfig

WINDOW = 400
"""Samples of a window."""
_HIGHEST = 8000.0
_LINEAR_BELOW, _LINEAR_STEP, _LOG_STEP = 1000.0, 200.0 / 3, np.log(6.4) / 27


@dataclass
class WhisperFeatureConfig(FeatureConfig):
    """Whisper's log-mel features."""

    kind: str = "whisper"
    bins: int = number(80, 4, 4096)
    """Number of mel bins: that of the Whisper model."""
    pad_seconds: float = number(0.0, 0, 30)
    """Shorter audio is padded with silence to this duration. Whisper was trained with 30 s; 0 is faster, and fine-tuning
    adapts the model to it."""
    statistics: str = choice("utterance", "running")
    """What the maximum is computed from that limits small values: `utterance`, or `running` (the frames so far, for
    streaming)."""

    @property
    def streams(self) -> bool:
        return self.statistics == "running"


class WhisperFeatures:
    """The features of `transformers`' WhisperFeatureExtractor, with the number of frames of the utterance.

    The extractor pads with zeros to 30 s; here to `features.pad_seconds`, by default without padding. In any case 400 zeros
    follow the samples, the length of a window, so that every frame equals that with padding.
    """

    def __init__(self, config: WhisperFeatureConfig) -> None:
        self.bins = config.bins
        self.rate = config.sampling_rate
        self.shift = round(FRAME_SHIFT * self.rate)
        self.least = round(config.pad_seconds * self.rate)
        self._window = np.asarray(np.hanning(WINDOW + 1)[:-1], np.float32)
        self._filters = slaney_filters(config.bins, WINDOW, self.rate)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` float32, T = round(N / 10 ms), N after padding."""
        if (len(samples) + self.shift // 2) // self.shift == 0:
            return np.zeros((0, self.bins), np.float32)
        count = max(len(samples), self.least)
        half = WINDOW // 2
        wave = np.zeros(half + count + WINDOW, np.float32)
        wave[half : half + len(samples)] = samples
        wave[:half] = wave[half + 1 : 2 * half + 1][::-1]  # mirrored at the beginning; zeros follow the end
        frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[:: self.shift][: (count + WINDOW) // self.shift]
        energies = power_spectra(frames * self._window, WINDOW) @ self._filters
        levels = np.log10(np.maximum(energies, np.float32(1e-10)))
        levels = (np.maximum(levels, levels.max() - np.float32(8.0)) + np.float32(4.0)) / np.float32(4.0)
        return np.ascontiguousarray(levels[: (count + self.shift // 2) // self.shift], np.float32)


def slaney_filters(bins: int, fft: int, sampling_rate: int) -> NDArray[np.float32]:
    """Triangles of area 1 up to 8 kHz over Slaney's mel scale, linear to 1 kHz: `(fft / 2 + 1, bins)`."""
    highest = _LINEAR_BELOW / _LINEAR_STEP + np.log(_HIGHEST / _LINEAR_BELOW) / _LOG_STEP
    mel = np.linspace(0.0, highest, bins + 2)
    above = np.maximum(mel - _LINEAR_BELOW / _LINEAR_STEP, 0.0)
    edges = np.where(above > 0, _LINEAR_BELOW * np.exp(_LOG_STEP * above), _LINEAR_STEP * mel)
    frequencies = np.linspace(0, sampling_rate / 2, fft // 2 + 1)
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[1:]
    filters = np.maximum(np.minimum(rising, falling), 0.0) * (2.0 / (edges[2:] - edges[:-2]))
    return np.asarray(filters, np.float32)
