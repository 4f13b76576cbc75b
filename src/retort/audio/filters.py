"""Filters of waves and curves in NumPy: moving means and minima, low-pass filters, polyphase resampling, spectra."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)

_OUTPUTS = 8192
"""Outputs of a resampling filter that are computed at once."""


def moving_mean(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Mean over `size` (odd) rows around each row of `values (N, ...)`; the first and last rows are repeated beyond
    the ends."""
    if not len(values):
        return values
    half = size // 2
    edges = [(half, half), *[(0, 0)] * (values.ndim - 1)]
    padded = np.pad(values, edges, mode="edge")
    total = padded[: len(values)].copy()
    for shift in range(1, size):
        total += padded[shift : shift + len(values)]
    return np.asarray(total / size)


def moving_minimum(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Minimum of each row of `values (N, ...)` and of up to `size - 1` rows before it.

    Source: van Herk 1992: cumulative minima in blocks of `size`, forwards and backwards.
    """
    count = len(values)
    before = np.full((size - 1, *values.shape[1:]), np.inf)
    after = np.full((-(count + size - 1) % size, *values.shape[1:]), np.inf)
    blocks = np.concatenate((before, values, after)).reshape(-1, size, *values.shape[1:])
    forwards = np.minimum.accumulate(blocks, axis=1).reshape(-1, *values.shape[1:])
    backwards = np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1, *values.shape[1:])
    return np.minimum(backwards[:count], forwards[size - 1 : size - 1 + count])


def low_pass(half: int, cutoff: float) -> NDArray[np.float64]:
    """Windowed-sinc filter `(2 half + 1,)` with gain 1 at 0 Hz, by a Kaiser window with beta 5.

    Args:
        cutoff: as a fraction of half of the sampling rate.
    """
    places = np.arange(-half, half + 1)
    taps = cutoff * np.sinc(cutoff * places) * np.kaiser(2 * half + 1, 5.0)
    return np.asarray(taps / taps.sum())


def upsample_filter_downsample(
    taps: NDArray[np.float32], samples: NDArray[np.float32], up: int, down: int, first: int, end: int
) -> NDArray[np.float32]:
    """Outputs `first` to `end` of a filter at `up` times the rate of `samples (N,)`, of which every `down`-th is kept.

    Output n is the sum of `taps[n down - k up] samples[k]` over k, always in the same order, so that a wave can be
    filtered in blocks.
    """
    length = -(-len(taps) // up)
    phases = np.zeros((length, up), np.float32)
    phases.reshape(-1)[: len(taps)] = taps
    phases = np.ascontiguousarray(phases.T[:, ::-1])
    result = np.empty(max(0, end - first), np.float32)
    for start in range(first, end, _OUTPUTS):
        stop = min(end, start + _OUTPUTS)
        low, high = start * down // up - length + 1, (stop - 1) * down // up + 1
        used = np.pad(samples[max(low, 0) : high], (max(0, -low), max(0, high - max(len(samples), low, 0))))
        windows = np.lib.stride_tricks.sliding_window_view(used, length)
        for place in range(start, min(start + up, stop)):  # every `up`-th output has the same phase
            own = windows[place * down // up - start * down // up :: down][: len(range(place, stop, up))]
            result[place - first : stop - first : up] = np.einsum("nk,k->n", own, phases[place * down % up])
    return result


def power_spectra(frames: NDArray[Float], fft: int) -> NDArray[Float]:
    """Squared magnitudes `(T, fft / 2 + 1)` of `frames (T, size)`, with zeros up to `fft` samples, in their dtype."""
    spectra = np.fft.rfft(frames, fft, axis=1)
    return np.asarray(np.square(spectra.real) + np.square(spectra.imag), frames.dtype)
