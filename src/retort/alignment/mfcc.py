"""Features of the GMM-HMM: 13 cepstral coefficients with first and second differences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

CEPSTRA = 13
DIM = 3 * CEPSTRA
"""Including the differences."""
FRAME_SHIFT = 0.01
"""Seconds from one frame to the next."""
_WINDOW = 0.025
_REACH = 2
"""Frames to each side in the window of a difference."""


class Mfcc:
    """Kaldi's MFCCs by kaldi-native-fbank: 25 ms windows every 10 ms, no dither, no energy.

    The number of frames is that of :class:`retort.audio.fbank.Fbank` for the same samples.

    Raises:
        UserError: kaldi-native-fbank is not installed.
    """

    def __init__(self, sampling_rate: int = 16000) -> None:
        try:
            import kaldi_native_fbank
        except ImportError:
            raise UserError(
                "cepstra require kaldi-native-fbank, which is not installed",
                remedy="Run: pip install 'retort-asr[hybrid]'",
            ) from None
        self.sampling_rate = sampling_rate
        self._options = kaldi_native_fbank.MfccOptions()
        self._options.frame_opts.samp_freq = sampling_rate
        self._options.frame_opts.dither = 0.0
        self._options.frame_opts.snip_edges = False
        self._options.use_energy = False
        self._computer = kaldi_native_fbank.OnlineMfcc

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """`samples (N,)` in [-1, 1] to `(T, 13)`, T = round(N / 10 ms), and 0 for less than one window."""
        if len(samples) < _WINDOW * self.sampling_rate:
            return np.zeros((0, CEPSTRA), np.float32)
        computer = self._computer(self._options)
        computer.accept_waveform(self.sampling_rate, (samples * 32768.0).tolist())
        computer.input_finished()
        return np.stack([computer.get_frame(index) for index in range(computer.num_frames_ready)])


def with_differences(cepstra: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(T, F)` to `(T, 3 F)`: values, their slopes over five frames, and the slopes of these.

    The first and the last frame are repeated at the ends.
    """
    first = _slopes(cepstra)
    return np.concatenate([cepstra, first, _slopes(first)], axis=1)


def _slopes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(values, ((_REACH, _REACH), (0, 0)), mode="edge")
    count = len(values)
    total = np.zeros_like(values)
    for step in range(1, _REACH + 1):
        ahead, back = padded[_REACH + step :][:count], padded[_REACH - step :][:count]
        total += step * (ahead - back)
    total /= 2 * sum(step * step for step in range(1, _REACH + 1))
    return total
