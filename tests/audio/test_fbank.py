from __future__ import annotations

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from lhotse.features.kaldi.extractors import Fbank as LhotseFbank
from lhotse.features.kaldi.extractors import FbankConfig as LhotseFbankConfig
from torch import Tensor

from retort.audio.cmvn import normalise_features
from retort.audio.fbank import FRAME_SHIFT, Fbank, FbankConfig


def wave(samples: int, seed: int = 0, rate: int = 16000) -> np.ndarray:
    """Tones, noise and a change of level."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / rate
    level = 0.05 + 0.4 * (np.sin(2 * np.pi * 1.5 * seconds) > 0)
    tones = np.sin(2 * np.pi * 220 * seconds) + 0.5 * np.sin(2 * np.pi * 1800 * seconds)
    return (level * tones * 0.3 + 0.01 * rng.standard_normal(samples)).astype(np.float32)


def reference(samples: np.ndarray, bins: int, rate: int, convention: str = "kaldi") -> Tensor:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = bins
    options.mel_opts.high_freq = -400.0
    if convention == "paraformer":
        options.frame_opts.snip_edges, options.frame_opts.window_type = True, "hamming"
        options.mel_opts.high_freq = 0.0
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(rate, (samples * 32768.0).tolist())
    computer.input_finished()
    return torch.from_numpy(np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)]))


@pytest.mark.parametrize(("bins", "rate"), [(80, 16000), (40, 16000), (40, 8000)])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.2345])
@pytest.mark.parametrize("convention", ["kaldi", "paraformer"])
def test_it_equals_kaldi(bins: int, rate: int, seconds: float, convention: str) -> None:
    samples = wave(int(seconds * rate), rate=rate)
    config = FbankConfig(bins=bins, sampling_rate=rate, convention=convention)
    features = torch.from_numpy(Fbank(config)(samples))
    expected = reference(samples, bins, rate, convention)
    assert features.dtype == torch.float32
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("samples", [1600, 1679, 1680, 15999, 16000, 16081])
def test_a_frame_every_ten_milliseconds(samples: int) -> None:
    features = Fbank(FbankConfig())(wave(samples))
    assert features.shape == (int(samples / 16000 / FRAME_SHIFT + 0.5), 80)


def test_digital_silence_stays_finite() -> None:
    samples = wave(16000)
    samples[4000:12000] = 0.0
    features = torch.from_numpy(Fbank(FbankConfig())(samples))
    assert features.isfinite().all()
    assert normalise_features(features).isfinite().all()


@pytest.mark.parametrize("samples", [0, 1, 79, 80, 130, 399])
def test_less_than_a_window_has_no_frame(samples: int) -> None:
    assert Fbank(FbankConfig(bins=40))(wave(samples)).shape == (0, 40)


@pytest.mark.parametrize("samples", [400, 401, 480, 560])
def test_a_window_or_little_more_equals_kaldi(samples: int) -> None:
    features = torch.from_numpy(Fbank(FbankConfig())(wave(samples)))
    torch.testing.assert_close(features, reference(wave(samples), 80, 16000), atol=2e-3, rtol=1e-3)


def test_cmvn_gives_zero_mean_and_unit_variance() -> None:
    torch.manual_seed(0)
    features = 12.0 + 3.0 * torch.randn(200, 80) * torch.linspace(0.1, 5.0, 80)
    normal = normalise_features(features)
    torch.testing.assert_close(normal.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.square().mean(0), torch.ones(80), atol=1e-3, rtol=0)


def test_cmvn_undoes_level_and_gain() -> None:
    features = torch.randn(50, 8)
    torch.testing.assert_close(
        normalise_features(3.0 * features - 7.0), normalise_features(features), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_constant_features_become_zero_and_not_nan(frames: int) -> None:
    normal = normalise_features(torch.full((frames, 8), -15.9))
    assert (normal.abs() < 1.0).all()
    assert torch.equal(normalise_features(torch.full((frames, 8), 2.0)), torch.zeros(frames, 8))


@pytest.mark.parametrize("samples", [400, 559, 560, 16000])
def test_it_equals_lhotse(samples: int) -> None:
    theirs = LhotseFbank(LhotseFbankConfig(num_filters=80, dither=0.0, snip_edges=False))
    own, expected = Fbank(FbankConfig())(wave(samples)), theirs.extract(wave(samples) * 32768, 16000)
    np.testing.assert_allclose(own, expected, atol=2e-3)
    assert np.abs(own - expected).mean() < 2e-5
