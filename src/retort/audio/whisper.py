"""Whisper's log-mel features (Radford et al. 2022, section 2.2), without its padding to 30 seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retort.audio.fbank import FRAME_SHIFT
from retort.config.schema import FeatureConfig


class WhisperFeatures:
    """The features of `transformers`' WhisperFeatureExtractor, with the number of frames of the utterance.

    The extractor pads with zeros to 30 s; here to `features.pad_seconds`, by default without padding. In any case 400 zeros
    follow the samples, the length of a window, so that every frame equals that with padding.
    """

    def __init__(self, config: FeatureConfig) -> None:
        from transformers import WhisperFeatureExtractor

        self.bins = config.bins
        self.rate = config.sampling_rate
        self.shift = round(FRAME_SHIFT * self.rate)
        self.least = round(config.pad_seconds * self.rate)
        self._extractor = WhisperFeatureExtractor(feature_size=config.bins, sampling_rate=self.rate)

    def __call__(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` float32, T = round(N / 10 ms), N after padding."""
        if (len(samples) + self.shift // 2) // self.shift == 0:
            return torch.zeros(0, self.bins)
        if len(samples) < self.least:
            samples = np.pad(samples, (0, self.least - len(samples)))
        frames = (len(samples) + self.shift // 2) // self.shift
        padded = np.pad(np.asarray(samples, np.float32), (0, self._extractor.n_fft))
        with torch.autocast("cpu", enabled=False):  # evaluation runs under the training's autocast
            made = self._extractor(
                padded, sampling_rate=self.rate, padding=False, truncation=False, return_tensors="np"
            )
        return torch.from_numpy(np.ascontiguousarray(made.input_features[0].T[:frames], dtype=np.float32))
