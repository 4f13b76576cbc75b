"""Resampling of complete waves and of streams of blocks."""

from __future__ import annotations

import math

import numpy as np

from retort.audio.filters import low_pass, upsample_filter_downsample


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """`(N,)` float32 at `rate` Hz to `(ceil(N * wanted / rate),)` at `wanted` Hz, by a polyphase filter."""
    if rate == wanted:
        return samples
    resampler = Resampler(rate, wanted)
    return np.concatenate((resampler(np.asarray(samples, np.float32)), resampler.finish()))


class Resampler:
    """Computes the same samples as :func:`resample` of the complete wave from blocks of any lengths.

    It stores only as many samples as the length of the filter.

    Args:
        rate: of the blocks, Hz.
        wanted: of the result, Hz.
    """

    def __init__(self, rate: int, wanted: int) -> None:
        divisor = math.gcd(rate, wanted)
        self.up, self.down = wanted // divisor, rate // divisor
        self._waiting = np.zeros(0, np.float32)
        self._first = 0  # index of the first waiting sample in the wave, a multiple of `down`
        self._seen = 0
        if self.up == self.down:
            return
        # The filter of scipy.signal.resample_poly, padded so that it delays by whole samples of the output.
        half = 10 * max(self.up, self.down)
        taps = (self.up * low_pass(half, 1.0 / max(self.up, self.down))).astype(np.float32)
        padding = self.down - half % self.down
        self._taps = np.concatenate([np.zeros(padding, np.float32), taps])
        self._delay = (half + padding) // self.down
        self._next = self._delay  # index of the next output, counted with the delay

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """The output samples `(m,)` float32 that can be computed after `block (n,)` float32."""
        self._seen += len(block)
        if self.up == self.down:
            return block
        return self._filtered(block, (self._seen * self.up - 1) // self.down + 1)

    def finish(self) -> np.ndarray:
        """The remaining samples, `(m,)` float32; call it once after the last block."""
        if self.up == self.down or not self._seen:
            return np.zeros(0, np.float32)
        end = self._delay + -(-self._seen * self.up // self.down)
        needed = (end - 1) * self.down // self.up + 1
        return self._filtered(np.zeros(max(0, needed - self._seen), np.float32), end)

    def _filtered(self, block: np.ndarray, end: int) -> np.ndarray:
        """Outputs from the next one to `end`, for which all input is there when `block` is appended."""
        self._waiting = np.concatenate([self._waiting, block])
        if end <= self._next:
            return np.zeros(0, np.float32)
        offset = self._first * self.up // self.down
        first, last = self._next - offset, end - offset
        filtered = upsample_filter_downsample(self._taps, self._waiting, self.up, self.down, first, last)
        self._next = end
        oldest = -((len(self._taps) - 1 - self._next * self.down) // self.up)  # input of the next output
        drop = (max(oldest, self._first) - self._first) // self.down * self.down
        self._waiting = self._waiting[drop:].copy()
        self._first += drop
        return filtered
