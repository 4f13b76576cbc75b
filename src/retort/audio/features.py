"""Feature extraction according to the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retort.audio.fbank import Fbank
from retort.audio.mel import ParakeetFeatures, W2vBertFeatures
from retort.audio.online import RunningWhisper
from retort.audio.wave import WaveFrames
from retort.audio.whisper import WhisperFeatures
from retort.config.schema import FeatureConfig

Extractor: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float32]]

EXTRACTORS: dict[str, Callable[[FeatureConfig], Extractor]] = {
    "fbank": Fbank,
    "wave": WaveFrames,
    "whisper": lambda config: (RunningWhisper if config.statistics == "running" else WhisperFeatures)(config),
    "parakeet": ParakeetFeatures,
    "w2v_bert": W2vBertFeatures,
}
"""Extractors by `features.kind`: `samples (N,)` float32 in [-1, 1] to `(T, bins)` float32 every 10 ms, before CMVN."""
