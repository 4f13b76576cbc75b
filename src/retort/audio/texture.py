"""Spectral steadiness of a sound, which distinguishes music and noise from speech."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW, _HOP = 0.025, 0.01
_BANDS = 40
_LOWEST, _HIGHEST = 100.0, 7000.0
_LOUD = 25.0
_LAGS = (4, 10)


def sound_signals(samples: NDArray[np.float32], sampling_rate: int) -> dict[str, float]:
    """Features of `samples (N,)`; empty for less than a quarter of a second.

    `steadiness_40`, `steadiness_100`: correlation of the log spectrum with that 40 and 100 ms later, mean over frames
    within 25 dB of the loudest: near 1 of held notes, near 0 of noise.
    """
    if len(samples) < 0.25 * sampling_rate:
        return {}
    size, hop = round(_WINDOW * sampling_rate), max(1, round(_HOP * sampling_rate))
    cut = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    power = np.abs(np.fft.rfft((cut - cut.mean(1, keepdims=True)) * np.hanning(size), axis=1)) ** 2
    spectrum = power @ _bands(size, sampling_rate)
    level = 10 * np.log10(spectrum.sum(1) + 1e-12)
    peak = float(np.percentile(level, 99))
    shape = np.log(spectrum + 1e-10 + 1e-4 * spectrum.max(1, keepdims=True))
    shape -= shape.mean(1, keepdims=True)
    shape /= np.sqrt(np.square(shape).sum(1, keepdims=True)) + 1e-9
    loud = level > peak - _LOUD
    signals = {}
    for lag in _LAGS:
        both = loud[:-lag] & loud[lag:]
        alike = (shape[:-lag] * shape[lag:]).sum(1)[both]
        signals[f"steadiness_{lag * 10}"] = float(alike.mean()) if len(alike) else 0.0
    return signals


def _bands(size: int, sampling_rate: int) -> NDArray[np.float64]:
    """`(bins, bands)`: triangles of equal width over the mel scale."""
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
    mel = 1127 * np.log1p(frequencies / 700)
    low, high = (float(1127 * np.log1p(each / 700)) for each in (_LOWEST, min(_HIGHEST, sampling_rate / 2)))
    edges = np.linspace(low, high, _BANDS + 2)
    rising = (mel[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    falling = (edges[None, 2:] - mel[:, None]) / np.diff(edges)[1:]
    return np.maximum(np.minimum(rising, falling), 0.0)
