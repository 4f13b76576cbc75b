"""Encoders with limits of context: what a frame depends on, and the same values with a cache; CIF over chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.nn.chunks import Chunks, StreamCache, draw_chunks, join_caches
from retort.nn.cif import NotFiniteError, WeightEstimator, integrate_and_fire
from retort.nn.cpu_kernels import Depthwise
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.fire_stream import FireStream
from retort.nn.frontend import FramesConfig
from tiny_streams import DIM, ENCODERS, tiny_encoder_config

BINS = 20


def encoder(kind: str) -> Encoder:
    torch.manual_seed(1)
    made = make_encoder(FramesConfig(stride=2), tiny_encoder_config(kind), BINS).double().eval()
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_the_mask_has_the_chunk_and_the_frames_before_it() -> None:
    mask = Chunks(3, 2).mask(torch.tensor([7]), 8)[0, 0]
    for query in range(7):
        start = query // 3 * 3
        allowed = [key for key in range(7) if start - 2 <= key < start + 3]
        assert mask[query].nonzero()[:, 0].tolist() == allowed
    assert mask[7].any()
    assert Chunks(3).mask(torch.tensor([7]), 7)[0, 0, 6].all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_frame_depends_on_its_chunk_and_earlier_frames_only(kind: str) -> None:
    model = encoder(kind)
    features, lengths = torch.randn(1, 96, BINS, dtype=torch.float64, requires_grad=True), torch.tensor([96])
    model.chunks = Chunks(4, 4)
    hidden, _ = model(features, lengths)
    reach = model.frontend.after
    for frame in (0, 3, 4, 9):
        (gradient,) = torch.autograd.grad(hidden[0, frame].sum(), features, retain_graph=True)
        used = gradient[0].abs().sum(1).nonzero()[:, 0]
        assert int(used.max()) == ((frame // 4 + 1) * 4) * model.subsampling + reach - 1


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_changes_nothing(kind: str) -> None:
    model = encoder(kind)
    model.chunks = Chunks(2, 4)
    sizes = [57, 24, 80]
    utterances = [torch.randn(size, BINS, dtype=torch.float64) for size in sizes]
    batch = torch.full((3, 85, BINS), float("nan"), dtype=torch.float64)
    for row, each in enumerate(utterances):
        batch[row, : len(each)] = each
    with torch.inference_mode():
        together, lengths = model(batch, torch.tensor(sizes))
        for row, each in enumerate(utterances):
            alone, length = model(each[None], torch.tensor([len(each)]))
            assert int(length) == int(lengths[row])
            assert torch.allclose(together[row, : int(length)], alone[0], atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_chunk_after_chunk_is_the_masked_utterance(kind: str) -> None:
    model, limits = encoder(kind), Chunks(2, 6)
    model.chunks = limits
    features, lengths = torch.randn(1, 70, BINS, dtype=torch.float64), torch.tensor([70])
    with torch.inference_mode():
        whole, _ = model(features, lengths)
        entered, count = model.entered(*model.frontend(features, lengths))
        cache = StreamCache(torch.zeros(1, dtype=torch.int64))
        size = limits.size * model.subsampling // model.frontend.subsampling
        parts = [
            model.advance(part, torch.tensor([part.shape[1]]), limits, cache)[0]
            for part in entered[:, : int(count)].split(size, dim=1)
        ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12, rtol=0.0)


def test_gradients_are_finite_where_utterances_are_padded() -> None:
    model = encoder("rotary").train()
    model.chunks = Chunks(2, 4)
    hidden, _ = model(torch.randn(2, 60, BINS, dtype=torch.float64), torch.tensor([60, 9]))
    hidden.square().sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_chunk_of_the_whole_utterance_is_no_limit(kind: str) -> None:
    model, features = encoder(kind), torch.randn(1, 50, BINS, dtype=torch.float64)
    whole, _ = model(features, torch.tensor([50]))
    model.chunks = Chunks(16)
    assert torch.allclose(model(features, torch.tensor([50]))[0], whole, atol=1e-12, rtol=0.0)


@given(kernel=st.sampled_from([1, 3, 7]), size=st.integers(1, 5), frames=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_a_convolution_sees_zeros_after_its_chunk(kernel: int, size: int, frames: int) -> None:
    layer, hidden = Depthwise(3, kernel).double(), torch.randn(2, frames, 3, dtype=torch.float64)
    found = layer(hidden, Chunks(size))
    cache, parts = StreamCache(torch.zeros(2, dtype=torch.int64)), []
    for start in range(0, frames, size):
        limited = hidden[:, : start + size]
        expected = layer(limited)[:, start:]
        assert torch.allclose(found[:, start : start + size], expected, atol=1e-12)
        parts.append(layer(hidden[:, start : start + size], Chunks(size, 1, cache)))
    assert torch.allclose(torch.cat(parts, 1), found, atol=1e-12)


def test_weights_of_cif_do_not_depend_on_later_chunks() -> None:
    estimator, hidden = (
        WeightEstimator(DIM, 3, 0.0).double().eval(),
        torch.randn(1, 9, DIM, dtype=torch.float64),
    )
    limited = estimator(hidden, torch.tensor([9]), Chunks(3))
    for end in (3, 6, 9):
        alone = estimator(hidden[:, :end], torch.tensor([end]))
        assert torch.allclose(limited[:, end - 3 : end], alone[:, end - 3 : end], atol=1e-12)


def test_caches_of_streams_are_joined_and_split() -> None:
    module = Depthwise(2, 3)
    first, second = (StreamCache(torch.tensor([count])) for count in (4, 0))
    first.tensors[module, "tail"] = torch.ones(1, 1, 2)
    joint = join_caches([first, second])
    assert joint.chunks.tolist() == [4, 0]
    assert joint.tensors[module, "tail"].sum((1, 2)).tolist() == [2.0, 0.0]
    assert [each.tensors[module, "tail"].sum() for each in joint.split()] == [2.0, 0.0]


def test_draws_depend_on_seed_and_step_alone() -> None:
    drawn = [draw_chunks([4, 8, 0], [16, 0], 3, step) for step in range(200)]
    assert drawn == [draw_chunks([4, 8, 0], [16, 0], 3, step) for step in range(200)]
    assert drawn != [draw_chunks([4, 8, 0], [16, 0], 4, step) for step in range(200)]
    assert set(drawn) == {None, *(Chunks(size, left) for size in (4, 8) for left in (16, 0))}
    assert draw_chunks([0], [0], 3, 5) is None


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    scale=st.sampled_from([0.2, 1.0, 3.0]),
    tail=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_cif_over_chunks_is_cif(seed: int, sizes: list[int], scale: float, tail: float) -> None:
    torch.manual_seed(seed)
    frames = sum(sizes)
    hidden, alphas = (
        torch.randn(frames, 4, dtype=torch.float64),
        scale * torch.rand(frames, dtype=torch.float64) - 0.05,
    )
    whole = integrate_and_fire(hidden[None], alphas[None], torch.tensor([frames]), tail=tail)
    stream, vectors, times = FireStream(), [], []
    for part, weights in zip(hidden.split(sizes), alphas.split(sizes)):
        found = stream(part, weights)
        vectors, times = vectors + found[0], times + found[1]
    found = stream.finish(tail)
    vectors, times = vectors + found[0], times + found[1]
    assert len(vectors) == int(whole.lengths)
    if vectors:
        assert torch.allclose(torch.stack(vectors), whole.embeddings[0], atol=1e-12, rtol=0.0)
        assert torch.allclose(
            torch.tensor(times, dtype=torch.float64), whole.fire_times[0], atol=1e-12, rtol=0.0
        )


def test_quantities_close_to_a_token_are_rounded_as_in_whole_utterances() -> None:
    for weights in ([0.5, 0.5], [0.1] * 10, [1.0, 2.0], [0.3, 0.7 - 1e-9], [1.0 + 1e-9]):
        alphas = torch.tensor(weights, dtype=torch.float64)
        hidden = torch.randn(len(weights), 2, dtype=torch.float64)
        whole = integrate_and_fire(hidden[None], alphas[None], torch.tensor([len(weights)]))
        stream = FireStream()
        assert len(stream(hidden, alphas)[0] + stream.finish(0.5)[0]) == int(whole.lengths)


def test_a_weight_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NotFiniteError):
        FireStream()(torch.zeros(1, 2), torch.tensor([float("nan")]))


def test_chunks_of_a_zipformer_are_whole_frames_of_its_stacks() -> None:
    model = encoder("zipformer")
    assert model.chunk_step == 2
    model.chunks = replace(Chunks(2), size=1)
    with pytest.raises(ValueError):
        model(torch.randn(1, 40, BINS, dtype=torch.float64), torch.tensor([40]))
