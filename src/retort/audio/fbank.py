"""Log-mel filter banks and their normalisation."""

from __future__ import annotations

import numpy as np
import torch
from lhotse.features.kaldi.extractors import Fbank as LhotseFbank
from lhotse.features.kaldi.extractors import FbankConfig as LhotseFbankConfig
from torch import Tensor

from retort.config.schema import FeatureConfig

FRAME_SHIFT = 0.01
"""Seconds from one frame to the next."""
WINDOW = 0.025
"""Seconds that one frame looks at."""


class Fbank:
    """Kaldi's log-mel filter banks: 25 ms windows every 10 ms, no dither, samples in the 16-bit range.

    lhotse's extractor computes them; `kaldi-native-fbank` is the reference of the tests.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.sampling_rate = config.sampling_rate
        self.bins = config.bins
        self._extractor = LhotseFbank(
            LhotseFbankConfig(
                sampling_rate=config.sampling_rate, num_filters=config.bins, dither=0.0, snip_edges=False
            )
        )

    def __call__(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to features `(T, bins)` float32.

        T = round(N / 10 ms), and 0 for less than one window, which the extractor cannot mirror at its ends.
        """
        if len(samples) < WINDOW * self.sampling_rate:
            return torch.zeros(0, self.bins)
        scaled = np.ascontiguousarray(samples, dtype=np.float32) * 32768.0
        with torch.autocast("cpu", enabled=False):  # evaluation runs under the training's autocast
            extracted = self._extractor.extract(scaled, self.sampling_rate)
        return torch.as_tensor(extracted, dtype=torch.float32)


def normalise_features(features: Tensor) -> Tensor:
    """Zero mean and unit variance of every bin over the utterance: `(T, bins)` to the same shape."""
    mean = features.mean(0, keepdim=True)
    deviation = features.std(0, keepdim=True, correction=0)
    return (features - mean) / deviation.clamp(min=1e-5)
