"""Whisper's encoder: equal to transformers', and independent of padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperModel

from retort.audio.whisper import WhisperFeatureConfig, WhisperFeatures
from retort.common.errors import UserError
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.frontend import Conv2dConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper import copy_whisper_weights
from tiny_speech import WHISPER, tiny_whisper


def encoder(layers: int = 3, pool_after: tuple[int, ...] = (), whisper: WhisperModel | None = None) -> Encoder:
    config = PretrainedEncoderConfig(
        architecture={"model_type": "whisper", **WHISPER},
        layers=layers,
        dim=WHISPER["d_model"],
        dropout=0.0,
        pool_after=list(pool_after),
    )
    made = make_encoder(Conv2dConfig(), config, 80).eval()
    weights = (whisper or tiny_whisper()).encoder.state_dict()
    copy_whisper_weights(weights, made.frontend, list(made.layers), made.norm)
    return made


@pytest.mark.parametrize("samples", [16000, 16001, 16079, 16080, 52345])
def test_features_are_those_of_transformers(samples: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    own = WhisperFeatures(WhisperFeatureConfig())(wave)
    other = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="np").input_features[0].T
    assert own.shape == (round(samples / 160 + 1e-9), 80)
    assert np.abs(own - other[: len(own)]).max() < 1e-5


def test_features_of_nothing_have_no_frames() -> None:
    assert WhisperFeatures(WhisperFeatureConfig())(np.zeros(0, np.float32)).shape == (0, 80)


def test_thirty_seconds_equal_transformers_encoder() -> None:
    whisper = tiny_whisper()
    features = torch.randn(2, 3000, 80)
    with torch.inference_mode():
        expected = whisper.encoder(features.transpose(1, 2)).last_hidden_state
        hidden, lengths = encoder(whisper=whisper)(features, torch.tensor([3000, 3000]))
    assert lengths.tolist() == [1500, 1500]
    assert (hidden - expected).abs().max() < 1e-4


@pytest.mark.parametrize("pool_after", [(), (1,), (1, 3)])
def test_an_utterance_gives_the_same_in_any_batch(pool_after: tuple[int, ...]) -> None:
    model = encoder(pool_after=pool_after).double()
    sizes = [57, 1, 120, 2, 119]
    utterances = [torch.randn(size, 80, dtype=torch.float64) for size in sizes]
    batch = torch.full((len(sizes), 131, 80), float("nan"), dtype=torch.float64)
    for row, each in enumerate(utterances):
        batch[row, : len(each)] = each
    with torch.inference_mode():
        together, lengths = model(batch, torch.tensor(sizes))
        for row, each in enumerate(utterances):
            alone, length = model(each[None], torch.tensor([len(each)]))
            assert length == lengths[row] == model.output_lengths(torch.tensor([len(each)]))
            assert torch.allclose(together[row, : int(length)], alone[0], atol=1e-12)
            assert not together[row, int(length) :].any()


@pytest.mark.parametrize("stored", [1, 2])
def test_training_on_stored_layers_computes_the_same(stored: int) -> None:
    model = encoder(pool_after=(2,))
    features, lengths = torch.randn(2, 40, 80), torch.tensor([40, 31])
    with torch.inference_mode():
        whole = list(model.each_layer(features, lengths))
        lower, after = model.lower(features, lengths, stored)
        upper = list(model.each_layer(lower, after, stored))
    assert len(upper) == len(whole)
    assert torch.equal(upper[-1][0], whole[-1][0])
    assert torch.equal(model.output_lengths(after, stored), model.output_lengths(lengths))


def test_longer_than_its_positions_is_refused() -> None:
    with pytest.raises(UserError):
        encoder()(torch.zeros(1, 3002, 80), torch.tensor([3002]))


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(UserError):
        encoder(layers=4)
