"""The wave as features, for encoders of raw samples: divided into frames of the same length as filter banks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retort.audio.fbank import FRAME_SHIFT
from retort.config.schema import FeatureConfig


class WaveFrames:
    """Samples side by side, 10 ms a frame, so that all that counts frames (batches, masks, times) stays as it is."""

    def __init__(self, config: FeatureConfig) -> None:
        self.size = round(FRAME_SHIFT * config.sampling_rate)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, sampling_rate / 100)` float32.

        T = round(N / 10 ms), as of filter banks: up to 5 ms at the end are cut off, or zeros are put there.
        """
        frames = (len(samples) + self.size // 2) // self.size
        wave = np.zeros(frames * self.size, np.float32)
        wave[: len(samples)] = samples[: len(wave)]
        return wave.reshape(frames, self.size)
