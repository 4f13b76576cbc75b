"""Normalisation of features over the utterance or the frames so far."""

from __future__ import annotations

import torch
from torch import Tensor

from retort.audio.online import RunningCmvn
from retort.config.schema import FeatureConfig


def normalised(features: Tensor, config: FeatureConfig) -> Tensor:
    """`(T, bins)` after CMVN, or unchanged without CMVN; T may be 0."""
    if not config.cmvn or len(features) == 0:
        return features
    if config.statistics == "running":
        return torch.from_numpy(RunningCmvn()(features.double().numpy())).to(features.dtype)
    return normalise_wave(features) if config.kind == "wave" else normalise_features(features)


def normalise_features(features: Tensor) -> Tensor:
    """Zero mean and unit variance of every bin over the utterance: `(T, bins)` to the same shape."""
    mean = features.mean(0, keepdim=True)
    deviation = features.std(0, keepdim=True, correction=0)
    return (features - mean) / deviation.clamp(min=1e-5)


def normalise_wave(frames: Tensor) -> Tensor:
    """Zero mean and unit variance over all samples of the utterance, as the encoders of wav2vec 2.0 are trained."""
    return (frames - frames.mean()) / (frames.var(correction=0) + 1e-7).sqrt()
