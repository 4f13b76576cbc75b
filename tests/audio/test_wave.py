from __future__ import annotations

import numpy as np
import pytest
import torch

from retort.audio.cmvn import normalise_wave, normalised
from retort.audio.fbank import Fbank, FbankConfig
from retort.audio.features import make_extractor
from retort.audio.wave import WaveConfig, WaveFrames

WAVE = WaveConfig()


@pytest.mark.parametrize("count", [0, 79, 80, 160, 239, 240, 400, 16000, 16079, 16080])
def test_samples_come_one_after_the_other_up_to_half_a_frame(count: int) -> None:
    samples = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    frames = WaveFrames(WAVE)(samples)
    assert frames.dtype == np.float32
    flat = frames.flatten()
    kept = min(count, len(flat))
    assert abs(count - len(flat)) <= 80
    assert np.array_equal(flat[:kept], samples[:kept])
    assert not flat[kept:].any()
    assert frames.shape == (len(flat) // 160, 160)
    if count >= 400:
        assert len(frames) == len(Fbank(FbankConfig())(samples))


def test_other_rates() -> None:
    config = WaveConfig(sampling_rate=8000)
    assert make_extractor(config)(np.zeros(8000, np.float32)).shape == (100, 80)


def test_normalised_as_transformers_does_it() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    samples = np.random.default_rng(0).normal(0.1, 0.02, 3200).astype(np.float32)
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(samples, sampling_rate=16000).input_values[0]
    frames = torch.from_numpy(WaveFrames(WAVE)(samples))
    assert np.allclose(normalise_wave(frames).flatten().numpy(), expected, atol=1e-5)
    assert torch.equal(normalised(frames, WAVE), normalise_wave(frames))
    assert torch.equal(normalised(frames, WaveConfig(cmvn=False)), frames)
    assert normalised(frames[:0], WAVE).shape == (0, 160)
    fbank = torch.randn(9, 80) + torch.arange(80)
    assert normalised(fbank, FbankConfig()).mean(0).abs().max() < 1e-4
