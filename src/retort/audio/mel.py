"""Log-mel features normalised over the utterance, as in `transformers` for w2v-BERT 2.0 and Parakeet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.config.ranges import number
from retort.config.schema import FeatureConfig

_SHORTEST = 2
"""Minimum number of frames for a variance."""


@dataclass
class ParakeetFeatureConfig(FeatureConfig):
    """Parakeet's log-mel features."""

    kind: str = "parakeet"
    bins: int = number(80, 4, 4096)
    """Number of mel bins: that of the Parakeet model."""


@dataclass
class W2vBertFeatureConfig(FeatureConfig):
    """Log-mel features of w2v-BERT 2.0."""

    kind: str = "w2v_bert"
    bins: int = number(80, 4, 4096)
    """Number of mel bins: half of the width of the model's input, which is two frames."""


class ParakeetFeatures:
    """Features of ParakeetFeatureExtractor (NVIDIA NeMo's log-mel), zero mean and unit variance of every bin included."""

    def __init__(self, config: ParakeetFeatureConfig) -> None:
        from transformers import ParakeetFeatureExtractor

        self.bins, self.rate = config.bins, config.sampling_rate
        self._extractor = ParakeetFeatureExtractor(
            feature_size=config.bins, sampling_rate=config.sampling_rate
        )

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` float32, T = floor(N / 10 ms), or 0 where that is 1."""
        frames = len(samples) // self._extractor.hop_length
        if frames < _SHORTEST:
            return np.zeros((0, self.bins), np.float32)
        import torch

        with torch.autocast("cpu", enabled=False):  # evaluation runs under the training's autocast
            made = self._extractor(
                np.asarray(samples, np.float32), sampling_rate=self.rate, return_tensors="pt"
            )
        return np.ascontiguousarray(made.input_features[0, :frames].numpy(), np.float32)


class W2vBertFeatures:
    """Features of SeamlessM4TFeatureExtractor (Kaldi's filter banks from the first sample on), before stacking;
    zero mean and unit variance of every bin included.
    """

    def __init__(self, config: W2vBertFeatureConfig) -> None:
        from transformers import SeamlessM4TFeatureExtractor

        self.bins, self.rate = config.bins, config.sampling_rate
        self._extractor = SeamlessM4TFeatureExtractor(
            feature_size=config.bins, num_mel_bins=config.bins, sampling_rate=config.sampling_rate, stride=1
        )
        self._window = round(0.025 * config.sampling_rate)
        self._shift = round(0.01 * config.sampling_rate)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` float32, T whole windows of 25 ms, or 0 where that is 1."""
        if (len(samples) - self._window) // self._shift + 1 < _SHORTEST:
            return np.zeros((0, self.bins), np.float32)
        made = self._extractor(
            np.asarray(samples, np.float32), sampling_rate=self.rate, padding=False, return_tensors="np"
        )
        return np.ascontiguousarray(made.input_features[0], dtype=np.float32)
