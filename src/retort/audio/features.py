"""Feature extraction according to the recipe, and normalisation over the utterance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from retort.audio.fbank import Fbank, normalise_features
from retort.audio.mel import ParakeetFeatures, W2vBertFeatures
from retort.audio.wave import WaveFrames, normalise_wave
from retort.audio.whisper import WhisperFeatures
from retort.config.schema import FeatureConfig

EXTRACTORS: dict[str, Callable[[FeatureConfig], Callable[[np.ndarray], Tensor]]] = {
    "fbank": Fbank,
    "wave": WaveFrames,
    "whisper": WhisperFeatures,
    "parakeet": ParakeetFeatures,
    "w2v_bert": W2vBertFeatures,
}
"""Extractors by `features.kind`: `samples (N,)` float32 in [-1, 1] to `(T, bins)` float32 every 10 ms, before CMVN."""


def normalised(features: Tensor, config: FeatureConfig) -> Tensor:
    """`(T, bins)` after CMVN, or unchanged without CMVN; T may be 0."""
    if not config.cmvn or len(features) == 0:
        return features
    return normalise_wave(features) if config.kind == "wave" else normalise_features(features)
