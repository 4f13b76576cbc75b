"""The wave as features, for encoders of raw samples: divided into frames of the same length as filter banks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.audio.fbank import FRAME_SHIFT
from retort.config.ranges import number
from retort.config.schema import FeatureConfig


@dataclass
class WaveConfig(FeatureConfig):
    """Samples as features."""

    kind: str = "wave"
    sampling_rate: int = number(16000, 4000, 192_000)
    """Sampling rate in Hz, which must be that of the encoder; audio with another rate is resampled."""
    cmvn: bool = True
    """Mean and variance normalisation over all samples of the utterance, if the encoder was trained with it."""

    @property
    def bins(self) -> int:
        return round(FRAME_SHIFT * self.sampling_rate)


class WaveFrames:
    """Samples side by side, 10 ms a frame, so that all that counts frames (batches, masks, times) stays as it is."""

    def __init__(self, config: WaveConfig) -> None:
        self.size = config.bins

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, sampling_rate / 100)` float32.

        T = round(N / 10 ms), as of filter banks: up to 5 ms at the end are cut off, or zeros are put there.
        """
        frames = (len(samples) + self.size // 2) // self.size
        wave = np.zeros(frames * self.size, np.float32)
        wave[: len(samples)] = samples[: len(wave)]
        return wave.reshape(frames, self.size)
