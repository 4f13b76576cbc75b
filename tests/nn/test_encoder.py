from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.nn.conformer import ConformerConfig, TransformerConfig
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.frontend import Conv2dConfig
from retort.nn.pooling import max_pool
from tiny_students import ENCODER, FRONTEND

BINS = 12
KINDS = [
    (kind, positions, faithful)
    for kind in ("conformer", "transformer")
    for positions in ("relative", "rotary")
    for faithful in (False, True)
]


def build(
    kind: str = "conformer",
    positions: str = "relative",
    faithful: bool = False,
    pool_after: tuple[int, ...] = (1, 2),
    convolutions: int = 1,
) -> Encoder:
    """Small, in eval mode, with BatchNorm statistics that are not trivial."""
    torch.manual_seed(0)
    config = TransformerConfig(layers=3, dim=ENCODER.dim, heads=ENCODER.heads, feedforward=ENCODER.feedforward)
    if kind == "conformer":
        config = ENCODER
    config = replace(config, layers=3, positions=positions, pool_after=list(pool_after))
    encoder = make_encoder(replace(FRONTEND, layers=convolutions), config, BINS, faithful)
    with torch.no_grad():
        encoder(torch.randn(4, 60, BINS), torch.tensor([60, 50, 40, 30]))
    return encoder.eval()


ENCODERS = {kind: build(*kind) for kind in KINDS}


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    extra=st.integers(0, 2),
    garbage=st.sampled_from([0.0, 1e9, float("nan"), float("inf")]),
)
@settings(max_examples=60, deadline=None)
def test_max_pool_is_a_loop_over_pairs(lengths: list[int], extra: int, garbage: float) -> None:
    frames = max(*lengths, 1) + extra
    hidden = torch.randn(len(lengths), frames, 3) - 5.0  # below zero: a zero from padding would show
    for row, length in enumerate(lengths):
        hidden[row, length:] = garbage
    pooled, halves = max_pool(hidden, torch.tensor(lengths))
    assert pooled.shape == (len(lengths), math.ceil(frames / 2), 3)
    assert halves.tolist() == [math.ceil(length / 2) for length in lengths]
    for row, length in enumerate(lengths):
        for index in range(pooled.shape[1]):
            pair = hidden[row, 2 * index : min(2 * index + 2, length)]
            expected = pair.amax(0) if len(pair) else torch.zeros(3)
            assert torch.equal(pooled[row, index], expected)


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("pool_after", [(), (2,), (1, 3)])
def test_output_lengths_and_subsampling_agree_with_forward(
    convolutions: int, pool_after: tuple[int, ...]
) -> None:
    encoder = build(pool_after=pool_after, convolutions=convolutions)
    assert encoder.subsampling == 2 ** (convolutions + len(pool_after))
    lengths = torch.tensor([0, 1, 2, 3, 4, 7, 8, 15, 16, 47])
    hidden, frames = encoder(torch.randn(10, 47, BINS), lengths)
    assert frames.tolist() == encoder.output_lengths(lengths).tolist()
    assert hidden.shape == (10, int(frames.max()), 16)
    long = torch.tensor([100_000])
    assert int(encoder.output_lengths(long)) * encoder.subsampling == pytest.approx(100_000, rel=1e-3)


def assert_same_alone(encoder: Encoder, utterances: list[Tensor], garbage: float, extra: int) -> None:
    lengths = torch.tensor([each.shape[0] for each in utterances])
    features = torch.full((len(utterances), int(lengths.max()) + extra, BINS), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : utterance.shape[0]] = utterance
    hidden, frames = encoder(features, lengths)
    assert hidden.dtype == torch.float32
    assert hidden.isfinite().all()
    for row, utterance in enumerate(utterances):
        alone, count = encoder(utterance[None], lengths[row : row + 1])
        size = int(count)
        assert int(frames[row]) == size
        torch.testing.assert_close(hidden[row, :size], alone[0, :size], atol=1e-5, rtol=1e-5)
        assert (hidden[row, size:] == 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 8), st.integers(9, 70)), min_size=1, max_size=4),
    garbage=st.sampled_from([0.0, 1e4, float("nan"), float("inf")]),
    extra=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    kind: tuple[str, str, bool], lengths: list[int], garbage: float, extra: int
) -> None:
    with torch.no_grad():
        assert_same_alone(ENCODERS[kind], [torch.randn(length, BINS) for length in lengths], garbage, extra)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_zero_length_utterance_is_zero_alone_and_harmless_in_a_batch(kind: tuple[str, str, bool]) -> None:
    with torch.no_grad():
        assert_same_alone(
            ENCODERS[kind], [torch.randn(length, BINS) for length in (0, 50, 1)], float("nan"), 0
        )
        hidden, lengths = ENCODERS[kind](torch.empty(1, 0, BINS), torch.tensor([0]))
    assert lengths.tolist() == [0]
    assert (hidden == 0).all()


def test_faithful_projects_once_more_and_scales() -> None:
    plain, faithful = build(), build(faithful=True)
    extra = set(faithful.state_dict()) - set(plain.state_dict())
    assert extra == {"input_projection.weight", "input_projection.bias"}
    assert faithful.scale == 4.0
    assert plain.scale == 1.0
    with torch.no_grad():
        faithful.load_state_dict(plain.state_dict(), strict=False)
        assert faithful.input_projection is not None
        faithful.input_projection.weight.copy_(torch.eye(16) / 4.0)
        faithful.input_projection.bias.zero_()
        features, lengths = torch.randn(2, 30, BINS), torch.tensor([30, 11])
        torch.testing.assert_close(
            faithful(features, lengths), plain(features, lengths), atol=1e-5, rtol=1e-5
        )


def test_parameters_of_the_published_encoder() -> None:
    with torch.device("meta"):
        encoder = make_encoder(Conv2dConfig(), ConformerConfig(pool_after=[5, 10]), 80, faithful=True)
    assert sum(each.numel() for each in encoder.parameters()) == 40_862_720
    assert encoder.subsampling == 8
