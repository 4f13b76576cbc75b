"""The wave as features, for encoders of raw samples: divided into frames of the same length as filter banks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retort.audio.fbank import FRAME_SHIFT
from retort.config.schema import FeatureConfig


class WaveFrames:
    """Samples side by side, 10 ms a frame, so that all that counts frames (batches, masks, times) stays as it is."""

    def __init__(self, config: FeatureConfig) -> None:
        self.size = round(FRAME_SHIFT * config.sampling_rate)

    def __call__(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to `(T, sampling_rate / 100)` float32.

        T = round(N / 10 ms), as of filter banks: up to 5 ms at the end are cut off, or zeros are put there.
        """
        wave = torch.from_numpy(np.array(samples, dtype=np.float32))
        frames = (len(wave) + self.size // 2) // self.size
        return F.pad(wave, (0, frames * self.size - len(wave))).view(frames, self.size)


def normalise_wave(frames: Tensor) -> Tensor:
    """Zero mean and unit variance over all samples of the utterance, as the encoders of wav2vec 2.0 are trained."""
    return (frames - frames.mean()) / (frames.var(correction=0) + 1e-7).sqrt()
