"""Log-mel filter banks of Kaldi, in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.audio.filters import power_spectra
from retort.config.ranges import choice, number
from retort.config.schema import FeatureConfig

FRAME_SHIFT = 0.01
"""Seconds from one frame to the next."""
WINDOW = 0.025
"""Seconds that one frame looks at."""
_PREEMPHASIS = 0.97
_LOWEST, _BELOW_NYQUIST = 20.0, 400.0
_FLOOR = float(np.finfo(np.float32).eps)


@dataclass
class FbankConfig(FeatureConfig):
    """Log-mel filter banks of Kaldi."""

    kind: str = "fbank"
    bins: int = number(80, 4, 4096)
    """Number of filter banks."""
    sampling_rate: int = number(16000, 4000, 192_000)
    """Sampling rate in Hz; audio with another rate is resampled."""
    floor: float = number(-16.0, -16, 20)
    """Smallest log energy. Kaldi's own is log 2^-23 = -15.94 of samples in the 16-bit range; sherpa-onnx computes with
    samples in [-1, 1], so that its smallest value corresponds to 4.852 here."""
    convention: str = choice("kaldi", "paraformer")
    """`kaldi` (Povey windows, filters up to 400 Hz below half of the sampling rate, windows mirrored at the ends of the
    recording) or `paraformer` (Hamming windows, filters up to half of the sampling rate, complete windows only), as
    sherpa-onnx computes the features of Paraformer models."""
    cmvn: bool = True
    """Mean and variance normalisation per utterance, for each bin."""
    statistics: str = choice("utterance", "running")
    """What CMVN is computed from: `utterance`, or `running` (the frames so far, for streaming)."""
    storage: str = choice("disk", "online")
    """`disk` (extracted once, stored in the experiment) or `online` (extracted from the audio in every epoch).
    Features of cuts in shards are always extracted from the audio."""

    @property
    def streams(self) -> bool:
        return self.convention == "kaldi" and (not self.cmvn or self.statistics == "running")


class Fbank:
    """Kaldi's log-mel filter banks: 25 ms windows every 10 ms, no dither, samples in the 16-bit range.

    The windows are mirrored at the ends of the recording (`snip_edges: false`), and the filters cover 20 Hz to 400 Hz
    below half of the sampling rate. With `convention: paraformer` only complete windows are used, with Hamming's weights,
    and the filters cover 20 Hz to half of the sampling rate. `kaldi-native-fbank` is the reference of the tests.
    """

    def __init__(self, config: FbankConfig) -> None:
        self.sampling_rate = config.sampling_rate
        self.bins = config.bins
        self._floor = np.float32(max(_FLOOR, math.exp(config.floor)))
        self.size, self.shift = (round(each * config.sampling_rate) for each in (WINDOW, FRAME_SHIFT))
        self._fft = 1 << (self.size - 1).bit_length()
        self._mirrored = config.convention == "kaldi"
        window = povey_window if self._mirrored else np.hamming
        self._window = np.asarray(window(self.size), np.float32)
        highest = config.sampling_rate / 2 - (_BELOW_NYQUIST if self._mirrored else 0.0)
        self._filters = kaldi_filters(config.bins, self._fft, config.sampling_rate, highest)
        self._wide_filters = self._filters.astype(np.float64)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to features `(T, bins)` float32.

        T = round(N / 10 ms), or the number of complete windows with `convention: paraformer`, and 0 for less than one
        window, which cannot be mirrored at its ends.
        """
        if len(samples) < WINDOW * self.sampling_rate:
            return np.zeros((0, self.bins), np.float32)
        cut = mirrored_frames if self._mirrored else complete_frames
        frames = cut(np.asarray(samples, np.float32) * np.float32(32768.0), self.size, self.shift)
        return np.asarray(self.energies(frames), np.float32)

    def energies(self, frames: NDArray[np.floating]) -> NDArray[np.floating]:
        """Logarithms `(T, bins)` of the energies of windows `(T, size)` of samples in the 16-bit range."""
        return self._logarithms(self._powers(frames) @ self._filters)

    def each_energies(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        """:meth:`energies` in float64 with one product per frame, so that the order of summation does not depend on the
        number of frames."""
        energies = (self._powers(frames)[:, None] @ self._wide_filters)[:, 0]
        return np.asarray(self._logarithms(energies), np.float64)

    def _powers(self, frames: NDArray[np.floating]) -> NDArray[np.floating]:
        """Power spectra `(T, fft / 2 + 1)` of windows `(T, size)`."""
        frames = frames - frames.mean(1, keepdims=True)
        before = np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
        return power_spectra((frames - np.float32(_PREEMPHASIS) * before) * self._window, self._fft)

    def _logarithms(self, energies: NDArray[np.floating]) -> NDArray[np.floating]:
        result: NDArray[np.floating] = np.log(np.maximum(energies, self._floor))
        return result


def mirrored_frames(samples: NDArray[np.float32], size: int, shift: int) -> NDArray[np.float32]:
    """Windows `(T, size)` of `samples (N,)` around the middle of every `shift` samples, mirrored at both ends."""
    count = (len(samples) + shift // 2) // shift
    left = (size - shift) // 2
    right = (count - 1) * shift + size - len(samples) - left
    end = samples[len(samples) - max(right, 0) :][::-1]
    padded = np.concatenate((samples[:left][::-1], samples[:right] if right < 0 else samples, end))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::shift][:count]


def complete_frames(samples: NDArray[np.float32], size: int, shift: int) -> NDArray[np.float32]:
    """Windows `(T, size)` of `samples (N,)` at every `shift` samples that end within them."""
    return np.lib.stride_tricks.sliding_window_view(samples, size)[::shift]


def povey_window(size: int) -> NDArray[np.float32]:
    """Kaldi's default window: a symmetric Hann window to the power of 0.85."""
    return np.asarray(np.hanning(size) ** 0.85, np.float32)


def kaldi_filters(bins: int, fft: int, sampling_rate: int, highest: float) -> NDArray[np.float32]:
    """Triangles of equal width over the mel scale up to `highest` Hz, `(fft / 2 + 1, bins)`."""
    low, high = (1127.0 * np.log1p(each / 700.0) for each in (_LOWEST, highest))
    edges = np.linspace(low, high, bins + 2)
    mel = 1127.0 * np.log1p(np.arange(fft // 2 + 1) * (sampling_rate / fft) / 700.0)
    mel[-1] = np.inf  # Kaldi's filters do not include half of the sampling rate
    rising = (mel[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0), np.float32)
