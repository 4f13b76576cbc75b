"""Features of audio that arrives in pieces: those of the whole recording."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.audio.cmvn import normalised
from retort.audio.fbank import Fbank, FbankConfig
from retort.audio.features import make_extractor
from retort.audio.online import PRIOR_DEVIATION, PRIOR_FRAMES, PRIOR_MEAN, online_features
from retort.audio.wave import WaveConfig
from retort.audio.whisper import WhisperFeatureConfig, WhisperFeatures
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig

FBANK = FbankConfig(bins=40, statistics="running")
WHISPER = WhisperFeatureConfig(bins=80, statistics="running")


def tone(samples: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.3 * np.sin(np.arange(samples) * 0.2) + random.normal(0, 0.05, samples)).astype(np.float32)


def extract(config: FeatureConfig, wave: np.ndarray) -> np.ndarray:
    """The features of a whole recording, as training and evaluation have them."""
    return normalised(torch.from_numpy(make_extractor(config)(wave)), config).numpy()


@pytest.mark.parametrize("config", [FBANK, WHISPER], ids=["fbank", "whisper"])
@given(samples=st.integers(0, 4000), cuts=st.lists(st.integers(0, 4000), max_size=5))
@settings(max_examples=25, deadline=None)
def test_pieces_give_the_frames_of_the_whole(config: FeatureConfig, samples: int, cuts: list[int]) -> None:
    wave = tone(samples)
    online = online_features(config)
    parts = [online.accept(part) for part in np.split(wave, sorted(cut % (samples + 1) for cut in cuts))]
    found = np.concatenate([*parts, online.finish()])
    again = online_features(config)
    assert np.allclose(found, np.concatenate((again.accept(wave), again.finish())), atol=1e-12, rtol=0.0)
    extracted = extract(config, wave)
    assert found.shape == extracted.shape
    if len(found):
        assert np.abs(found - extracted).max() < 2e-3


@pytest.mark.parametrize("samples", [400, 4000, 4079, 4080])
def test_filter_banks_are_those_of_whole_recordings(samples: int) -> None:
    online = online_features(FbankConfig(bins=40, cmvn=False))
    wave = tone(samples)
    assert np.abs(np.concatenate((online.accept(wave), online.finish())) - Fbank(FBANK)(wave)).max() < 2e-3


def test_after_the_loudest_frame_whispers_features_are_those_of_whisper() -> None:
    wave = tone(8000)
    wave[:800] *= 10.0
    wave[4000:] *= 1e-4
    own, usual = extract(WHISPER, wave), WhisperFeatures(WhisperFeatureConfig())(wave)
    assert np.abs(own[8:] - usual[8:]).max() < 1e-4


def test_frames_do_not_depend_on_later_samples() -> None:
    wave, other = tone(4000), tone(4000)
    other[2000:] = 0.9
    for config in (FBANK, WHISPER):
        first, second = extract(config, wave), extract(config, other)
        same = (2000 - online_features(config).look_ahead) // 160
        assert np.allclose(first[:same], second[:same], atol=1e-5)
        assert not np.allclose(first, second, atol=1e-5)


def test_running_cmvn_by_hand() -> None:
    features = torch.randn(7, 3, dtype=torch.float64)
    found = normalised(features, FBANK)
    for frame in range(7):
        seen = features[: frame + 1]
        count = PRIOR_FRAMES + len(seen)
        mean = (PRIOR_FRAMES * PRIOR_MEAN + seen.sum(0)) / count
        square = (PRIOR_FRAMES * (PRIOR_MEAN**2 + PRIOR_DEVIATION**2) + seen.square().sum(0)) / count
        assert torch.allclose(found[frame], (features[frame] - mean) / (square - mean**2).sqrt(), atol=1e-9)


def test_features_over_the_utterance_are_refused() -> None:
    for config in (FbankConfig(), WhisperFeatureConfig(), WaveConfig()):
        with pytest.raises(UserError):
            online_features(config)
