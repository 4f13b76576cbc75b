"""Encoder, weights and decoder of `faithful: true` next to the published architecture, restated with their weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_layers import (
    below,
    conformer_layer,
    decoder,
    encoder,
    fairseq_sinusoid,
    frontend,
    linear,
    pool,
    randomise,
    sinusoid,
    weight_estimator,
    weights_of,
)
from torch import Tensor, nn

from retort.config.loading import load_recipe
from retort.nn.cif import WeightEstimator
from retort.nn.conformer import ConformerConfig, ConformerLayer
from retort.nn.decoder import AutoregressiveConfig, CifDecoder
from retort.nn.encoder import make_encoder
from retort.nn.frontend import Conv2dConfig, Conv2dFrontend
from retort.nn.normalisation import MaskedBatchNorm
from retort.nn.pooling import max_pool
from retort.students.factory import build_student

BINS, HEADS = 11, 2


def small(layers: int = 1, pool_after: tuple[int, ...] = ()) -> ConformerConfig:
    return ConformerConfig(
        layers=layers, dim=8, heads=HEADS, feedforward=12, kernel=5, pool_after=list(pool_after)
    )


def ready(module: nn.Module) -> nn.Module:
    randomise(module)
    return module.double().eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(got: Tensor, slow: np.ndarray, tolerance: float = 1e-6) -> None:
    assert tuple(got.shape) == slow.shape
    np.testing.assert_allclose(got.detach().double().numpy(), slow, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frames", [3, 4, 16, 17])
def test_front_end(frames: int) -> None:
    module = ready(Conv2dFrontend(Conv2dConfig(channels=3), BINS, dim=8))
    features = noise(frames, BINS)
    hidden, lengths = module(features[None], torch.tensor([frames]))
    assert lengths.tolist() == [(frames - 1) // 2]
    assert_close(hidden[0], frontend(features.numpy(), weights_of(module)), 1e-9)


def test_eighty_bins_are_4992_numbers_a_frame() -> None:
    projection = Conv2dFrontend(Conv2dConfig(), 80, dim=256).projection
    assert (projection.in_features, projection.out_features) == (4992, 256)


def test_faithful_scales_by_sixteen_and_projects_once_more() -> None:
    config = ConformerConfig(layers=0, dim=256, pool_after=[])
    module = make_encoder(Conv2dConfig(channels=2), config, BINS, faithful=True).eval()
    features = torch.randn(1, 9, BINS, generator=torch.Generator().manual_seed(0))
    hidden, _ = module(features, torch.tensor([9]))
    weights = weights_of(module)
    slow = frontend(features[0].double().numpy(), below(weights, "frontend"))
    assert_close(hidden[0], linear(16.0 * slow, below(weights, "input_projection")), 1e-4)
    plain = make_encoder(Conv2dConfig(channels=2), config, BINS, faithful=False).eval()
    assert plain.input_projection is None
    slow = frontend(features[0].double().numpy(), below(weights_of(plain), "frontend"))
    assert_close(plain(features, torch.tensor([9]))[0][0], slow, 1e-4)


@pytest.mark.parametrize("frames", [1, 2, 7, 12])
def test_conformer_layer(frames: int) -> None:
    module = ready(ConformerLayer(small()))
    hidden = noise(1, frames, 8)
    got = module(hidden, torch.tensor([frames]))
    assert_close(got[0], conformer_layer(hidden[0].numpy(), weights_of(module), HEADS))


def test_padding_leaks_into_the_published_layer_not_into_ours() -> None:
    module = ready(ConformerLayer(small()))
    weights, hidden = weights_of(module), noise(1, 9, 8)
    alone = conformer_layer(hidden[0, :6].numpy(), weights, HEADS)
    padded = conformer_layer(hidden[0].numpy(), weights, HEADS, valid=6)[:6]
    # Attention is masked there too; the depthwise convolution (two frames to either side) is not.
    np.testing.assert_allclose(padded[:4], alone[:4], atol=1e-12)
    assert np.abs(padded[4:] - alone[4:]).min() > 1e-6
    assert_close(module(hidden, torch.tensor([6]))[0, :6], alone)


def test_padding_enters_the_published_statistics_not_ours() -> None:
    norm = MaskedBatchNorm(3).double().train()
    frames, mask = noise(2, 4, 3), torch.arange(4) < torch.tensor([[4], [2]])
    got = norm(frames, mask)
    valid = torch.cat((frames[0], frames[1, :2]))
    scale = torch.sqrt(valid.var(0, correction=0) + 1e-5)
    torch.testing.assert_close(got[mask], (valid - valid.mean(0)) / scale)
    published = nn.BatchNorm1d(3).double().train()(frames.transpose(1, 2)).transpose(1, 2)
    assert (published[mask] - got[mask]).abs().max() > 0.05


def test_pooling_keeps_an_odd_last_frame_that_is_dropped_there() -> None:
    hidden = noise(1, 7, 8)
    pooled, lengths = max_pool(hidden, torch.tensor([7]))
    assert lengths.tolist() == [4]
    assert_close(pooled[0, :3], pool(hidden[0].numpy()), 0.0)
    torch.testing.assert_close(pooled[0, 3], hidden[0, 6])
    # Next to a longer utterance the published mask keeps the odd frame, maximum with padding: ours is the same
    # alone and in company.
    company = torch.cat((hidden, noise(1, 1, 8, seed=2) + 9.0), dim=1)
    assert (pool(company[0].numpy())[3] > hidden[0, 6].numpy()).all()
    assert torch.equal(max_pool(company, torch.tensor([7]))[0], pooled)
    assert_close(max_pool(hidden[:, :6], torch.tensor([6]))[0][0], pool(hidden[0, :6].numpy()), 0.0)


def test_whole_encoder_of_an_utterance_whose_frames_are_even_at_every_pooling() -> None:
    module = make_encoder(Conv2dConfig(channels=3), small(3, (1, 2)), BINS, faithful=True)
    ready(module)
    with torch.no_grad():  # so that sixteen-fold inputs leave the first layer room
        module.input_projection.weight.mul_(0.1)  # type: ignore[union-attr]
    features = noise(17, BINS)
    hidden, lengths = module(features[None], torch.tensor([17]))
    assert lengths.tolist() == [2]  # 17 feature frames, 8 after the convolution, 4, 2
    assert_close(hidden[0], encoder(features.numpy(), weights_of(module), 3, HEADS, {1, 2}), 1e-5)


def test_a_convolution_and_two_poolings_make_eighty_milliseconds() -> None:
    recipe = load_recipe("aishell1/cif")
    with torch.device("meta"):
        student = build_student(recipe.student, 4234, 80)
    assert student.encoder.subsampling == 8
    assert recipe.student.encoder.pool_after == [5, 10]


def test_weight_estimator() -> None:
    module = ready(WeightEstimator(8, kernel=3, dropout=0.2))
    hidden = noise(1, 9, 8)
    got = module(hidden, torch.tensor([9]))
    assert_close(got[0], weight_estimator(hidden[0].numpy(), weights_of(module)))
    # The frame after the last is zero for us, whatever it was; there it is what the encoder left.
    masked = hidden.masked_fill((torch.arange(9) >= 6)[:, None], 0.0)
    alone = weight_estimator(hidden[0, :6].numpy(), weights_of(module))
    assert_close(module(masked, torch.tensor([6]))[0, :6], alone)
    assert abs(weight_estimator(hidden[0].numpy(), weights_of(module))[5] - alone[5]) > 1e-3


def test_decoder_step_by_step() -> None:
    config = AutoregressiveConfig(layers=2, dim=8, heads=HEADS, feedforward=12)
    module = ready(CifDecoder(config, vocabulary=10, acoustic_dim=6))
    tokens, fired = [5, 9, 4, 2], noise(4, 6)
    previous = torch.tensor([[2, *tokens[:-1]]])  # the end symbol starts
    states, logits = module(previous, fired[None])
    weights = weights_of(module)
    slow_states, slow_logits = decoder(tokens, fired.numpy(), weights, 2, HEADS, sinusoid)
    assert_close(states[0], slow_states)
    assert_close(logits[0], slow_logits)
    # The positions are the paper's of the Transformer, not fairseq's variant of them.
    other, _ = decoder(tokens, fired.numpy(), weights, 2, HEADS, fairseq_sinusoid)
    assert np.abs(other - slow_states).max() > 1e-2


def test_decoder_ties_nothing() -> None:
    module = CifDecoder(AutoregressiveConfig(), vocabulary=10, acoustic_dim=256)
    assert module.vocabulary.weight is not module.embedding.weight
    assert [each.bias for each in (module.input, module.output, module.vocabulary)] == [None] * 3


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_by_part() -> None:
    """Every part from its sizes, and the totals that the published log and its arithmetic give."""
    d, ffn, vocabulary = 256, 2048, 4234
    norm, square = 2 * d, d * d
    half = norm + 2 * d * ffn + ffn + d
    attention = norm + 4 * (square + d) + square + 2 * d  # positions without bias; u and v of all heads
    convolution = norm + 2 * square + 15 * d + norm + square
    layer = 2 * half + attention + convolution + norm
    decoder_layer = norm + 4 * (square + d) + norm + 2 * d * ffn + ffn + d
    recipe = load_recipe("aishell1/cif")
    with torch.device("meta"):
        student = build_student(recipe.student, vocabulary, 80)
    parts = {
        student.encoder.frontend.convolutions: 128 * 9 + 128,
        student.encoder.frontend.projection: 4992 * d + d,
        student.encoder.input_projection: square + d,
        student.encoder.layers: 15 * layer,
        student.encoder: 40_862_720,
        student.weights: 3 * square + d + d + 1,
        student.ctc: d * vocabulary + vocabulary,
        student.decoder.embedding: vocabulary * d,
        student.decoder.input: 2 * square,
        student.decoder.layers: 2 * decoder_layer,
        student.decoder.norm: norm,
        student.decoder.output: 2 * square,
        student.decoder.vocabulary: d * vocabulary,
        student: 47_208_587,
    }
    assert (layer, decoder_layer) == (2_634_496, 1_315_072)
    for part, expected in parts.items():
        assert part is not None
        assert count(part) == expected, type(part).__name__
