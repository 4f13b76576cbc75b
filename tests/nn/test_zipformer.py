from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retort.config.loading import load_recipe
from retort.info.describe import describe
from retort.nn.encoder import make_encoder
from retort.nn.masks import attention_mask, valid_mask
from retort.nn.pooling import Downsample
from retort.nn.positions import compact_table
from retort.nn.zipformer import (
    AttentionWeights,
    BiasNorm,
    Bypass,
    Convolution,
    FeedForward,
    NonLinearAttention,
    WeightedSum,
    ZipformerBlock,
    ZipformerConfig,
    ZipformerStack,
    swoosh_l,
    swoosh_r,
)
from tiny_students import FRONTEND

BINS = 12
CONFIG = ZipformerConfig(
    blocks=[1, 2, 1],
    downsampling=[1, 3, 2],
    dims=[8, 12, 4],
    heads=[2, 3, 1],
    feedforward=[8, 12, 4],
    kernels=[5, 3, 3],
    straight_steps=0,
    query_dim=4,
    value_dim=3,
    position_dim=2,
    table_dim=6,
    dropout=0.0,
    attention_dropout=0.0,
    pool_after=[2],
)


def stirred(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """With weights at random everywhere: fresh ones hide what they should do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale, generator=generator)
    return module.eval()


def wide(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64)


def test_the_activations_are_their_formulas() -> None:
    values = torch.linspace(-30, 30, 121, dtype=torch.float64)
    for value, right, left in zip(values.tolist(), swoosh_r(values), swoosh_l(values)):
        assert float(right) == pytest.approx(
            math.log1p(math.exp(value - 1)) - 0.08 * value - 0.313261687, abs=1e-7
        )
        assert float(left) == pytest.approx(math.log1p(math.exp(value - 4)) - 0.08 * value - 0.035, abs=1e-7)
    assert float(swoosh_r(torch.zeros((), dtype=torch.float64))) == pytest.approx(0.0, abs=1e-9)


def test_the_norm_keeps_the_length_against_its_bias() -> None:
    norm = stirred(BiasNorm(6)).double()
    hidden = wide(2, 5, 6)
    found = norm(hidden)
    for row in range(2):
        for frame in range(5):
            values = hidden[row, frame]
            power = sum((value - bias) ** 2 for value, bias in zip(values, norm.bias)) / 6
            torch.testing.assert_close(found[row, frame], values / power.sqrt() * norm.log_scale.exp())
    assert (norm(2 * hidden).norm(dim=-1) - found.norm(dim=-1)).abs().max() > 1e-3
    assert BiasNorm(6)(hidden.bfloat16()).dtype == torch.float32


def test_a_frame_of_zeros_stays_finite() -> None:
    norm = BiasNorm(4)
    nn.init.zeros_(norm.bias)
    hidden = torch.zeros(1, 4, requires_grad=True)
    norm(hidden).sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert all(torch.isfinite(each.grad).all() for each in norm.parameters())


def test_a_bypass_is_between_two() -> None:
    bypass = Bypass(3)
    assert (Bypass(3, 5).weight == 0.9).all()
    assert [Bypass(3, 5).limits(step) for step in (0, 4, 5)] == [(0.9, 1.0), (0.9, 1.0), (0.2, 1.0)]
    before, after = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    torch.testing.assert_close(bypass(before, after), (before + after) / 2)
    bypass.weight.data = torch.tensor([0.0, 0.25, 1.0])
    expected = torch.stack((before[..., 0], 0.75 * before[..., 1] + 0.25 * after[..., 1], after[..., 2]), -1)
    torch.testing.assert_close(bypass(before, after), expected)


def weights_slowly(module: AttentionWeights, hidden: Tensor) -> Tensor:
    """One utterance `(T, dim)`: `(heads, T, T)`, pair by pair."""
    frames, (query, _, position) = len(hidden), module.sizes
    projected = module.projection(hidden).view(frames, module.heads, -1)
    table = compact_table(frames, module.table, hidden.device).double()
    places = module.position(table).view(2 * frames - 1, module.heads, position)
    scores = torch.zeros(module.heads, frames, frames, dtype=hidden.dtype)
    for head in range(module.heads):
        for i in range(frames):
            for j in range(frames):
                asking, answering = projected[i, head], projected[j, head]
                content = asking[:query] @ answering[query : 2 * query]
                distance = asking[2 * query :] @ places[j - i + frames - 1, head]
                scores[head, i, j] = content + distance
    raised = scores.exp()
    return raised / raised.sum(-1, keepdim=True)


def test_attention_is_a_loop_over_pairs() -> None:
    module = stirred(AttentionWeights(8, 3, 4, 2, 6, 0.0)).double()
    hidden, lengths = wide(2, 6, 8), torch.tensor([6, 4])
    hidden[1, 4:] = 1e9
    found = module(hidden, attention_mask(lengths, 6))
    for row, length in enumerate(lengths.tolist()):
        expected = weights_slowly(module, hidden[row, :length])
        torch.testing.assert_close(found[row, :, :length, :length], expected)
    assert (found[1, :, :4, 4:] == 0).all()


def test_what_is_done_with_the_weights() -> None:
    hidden, weights = wide(2, 5, 8), wide(2, 3, 5, 5).softmax(-1)
    module = stirred(WeightedSum(8, 3, 2)).double()
    heads = []
    for head in range(3):
        value = (
            hidden @ module.value.weight[2 * head : 2 * head + 2].T
            + module.value.bias[2 * head : 2 * head + 2]
        )
        heads.append(torch.stack([weights[row, head] @ value[row] for row in range(2)]))
    torch.testing.assert_close(module(hidden, weights), module.output(torch.cat(heads, -1)))
    other = stirred(NonLinearAttention(8)).double()
    a, b, c = (
        hidden @ other.projection.weight[6 * part : 6 * part + 6].T
        + other.projection.bias[6 * part : 6 * part + 6]
        for part in range(3)
    )
    mixed = torch.stack([weights[row, 0] @ (b[row].tanh() * c[row]) for row in range(2)])
    torch.testing.assert_close(other(hidden, weights), other.output(a * mixed))


@pytest.mark.parametrize("garbage", [0.0, 1e9, float("nan")])
def test_the_convolution_is_a_loop_over_frames_and_channels(garbage: float) -> None:
    module = stirred(Convolution(4, 3)).double()
    hidden, lengths = wide(2, 6, 4), torch.tensor([6, 2])
    hidden[1, 2:] = garbage
    found = module(hidden, valid_mask(lengths, 6))
    for row, length in enumerate(lengths.tolist()):
        doubled = module.gate(hidden[row, :length])
        gated = doubled[:, :4] * doubled[:, 4:].sigmoid()
        mixed = torch.zeros_like(gated)
        for frame in range(length):
            for channel in range(4):
                total = module.depthwise.bias[channel]
                for place in range(3):
                    source = frame + place - 1
                    if 0 <= source < length:
                        total = total + module.depthwise.weight[channel, 0, place] * gated[source, channel]
                mixed[frame, channel] = total
        torch.testing.assert_close(found[row, :length], module.output(swoosh_r(mixed)))


def test_the_feed_forward_is_its_formula() -> None:
    module = stirred(FeedForward(4, 12, 0.5)).double()
    hidden = wide(2, 3, 4)
    expanded = swoosh_l(hidden @ module.expand.weight.T + module.expand.bias)
    torch.testing.assert_close(module(hidden), expanded @ module.contract.weight.T + module.contract.bias)


def test_a_block_computes_its_weights_once_and_follows_figure_2() -> None:
    block = stirred(ZipformerBlock(CONFIG, 0), 0.3).double()
    assert [each.expand.out_features for each in block.feedforwards] == [6, 8, 10]
    calls: list[int] = []
    block.weights.register_forward_hook(lambda *_: calls.append(1))
    hidden, lengths = wide(2, 6, 8), torch.tensor([6, 3])
    found = block(hidden, lengths)
    assert len(calls) == 1
    mask, weights = valid_mask(lengths, 6), block.weights(hidden, attention_mask(lengths, 6))
    step = hidden + block.feedforwards[0](hidden)
    step = step + block.nonlinear(step, weights)
    for half in (0, 1):
        step = step + block.attentions[half](step, weights)
        step = step + block.convolutions[half](step, mask)
        step = step + block.feedforwards[half + 1](step)
        share = block.bypasses[half].weight
        step = (1 - share) * hidden + share * (block.norm(step) if half else step)
    torch.testing.assert_close(found, step)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    factor=st.integers(1, 5),
    extra=st.integers(0, 3),
    garbage=st.sampled_from([0.0, 1e9, float("nan")]),
)
@settings(max_examples=40, deadline=None)
def test_downsampling_is_a_loop_over_groups(
    lengths: list[int], factor: int, extra: int, garbage: float
) -> None:
    module = stirred(Downsample(factor), 2.0).double()
    hidden = wide(len(lengths), max(*lengths, 1) + extra, 3)
    for row, length in enumerate(lengths):
        hidden[row, length:] = garbage
    found, fewer = module(hidden, torch.tensor(lengths))
    raised = module.weight.exp()
    for row, length in enumerate(lengths):
        assert int(fewer[row]) == math.ceil(length / factor)
        for group in range(found.shape[1]):
            places = [each for each in range(factor) if group * factor + each < length]
            expected = torch.zeros(3, dtype=torch.float64)
            for place in places:
                share = raised[place] / sum(raised[each] for each in places)
                expected = expected + share * hidden[row, group * factor + place]
            torch.testing.assert_close(found[row, group], expected)


def test_a_stack_works_at_its_rate_and_gives_back_the_frames_it_was_given() -> None:
    stack = stirred(ZipformerStack(CONFIG, 2), 0.3).double()
    hidden, lengths = wide(2, 7, 12), torch.tensor([7, 4])
    slow, fewer = stack.downsample(hidden, lengths)
    assert fewer.tolist() == [3, 2]
    for block in stack.blocks:
        slow = block(slow, fewer)
    repeated = torch.stack([slow[:, frame // 3] for frame in range(7)], dim=1)
    expected = hidden + stack.bypass.weight * (repeated - hidden)
    torch.testing.assert_close(stack(hidden, lengths), expected)


def test_channels_are_padded_truncated_and_joined_as_in_the_paper() -> None:
    """Its rule, section 3.1: zeros for channels that are missing, the most recent output of each at the end."""
    stacks = [stirred(ZipformerStack(CONFIG, number), 0.3).double() for number in (1, 2, 3)]
    hidden, lengths = wide(2, 7, 8), torch.tensor([7, 4])
    joined, passed = hidden, []
    for stack in stacks:
        joined = stack(joined, lengths)
    output = stacks[0].entry(hidden)
    for stack in stacks:
        missing = max(0, stack.dim - output.shape[-1])
        output = torch.cat((output, output.new_zeros(2, 7, missing)), -1)[..., : stack.dim]
        output = stack._stacked(output, lengths)
        passed.append(output)
    first, second, third = passed
    assert [each.shape[-1] for each in passed] == CONFIG.dims
    torch.testing.assert_close(joined, torch.cat((third, second[..., 4:]), -1))
    assert first.shape[-1] < second.shape[-1]  # nothing of the first is left


@pytest.mark.parametrize("number", [1, 2, 3])
def test_padding_gets_no_gradient_from_valid_frames(number: int) -> None:
    hidden = torch.randn(2, 8, 12, requires_grad=True)
    lengths = torch.tensor([8, 4])
    mask = valid_mask(lengths, 8)
    stack = stirred(ZipformerStack(CONFIG, number), 0.3)
    (stack(hidden, lengths) * mask[..., None]).square().sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(-1) > 0).all()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in stack.parameters())


@pytest.mark.parametrize("number", [1, 2])
def test_gradients(number: int) -> None:
    stack = stirred(ZipformerStack(CONFIG, number), 0.3).double()
    hidden = wide(2, 4, 12).requires_grad_()
    lengths = torch.tensor([4, 2])
    inputs = (hidden, *stack.parameters())
    assert torch.autograd.gradcheck(
        lambda hidden, *_: stack(hidden, lengths)[valid_mask(lengths, 4)], inputs, fast_mode=True
    )


ENCODER = stirred(make_encoder(FRONTEND, CONFIG, BINS), 0.3)


@given(
    lengths=st.lists(st.one_of(st.integers(0, 8), st.integers(9, 50)), min_size=1, max_size=4),
    garbage=st.sampled_from([0.0, 1e4, float("nan")]),
    extra=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    lengths: list[int], garbage: float, extra: int
) -> None:
    utterances = [torch.randn(length, BINS) for length in lengths]
    features = torch.full((len(lengths), max(lengths) + extra, BINS), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : len(utterance)] = utterance
    with torch.no_grad():
        hidden, frames = ENCODER(features, torch.tensor(lengths))
        assert frames.tolist() == ENCODER.output_lengths(torch.tensor(lengths)).tolist()
        for row, utterance in enumerate(utterances):
            alone, count = ENCODER(utterance[None], torch.tensor([len(utterance)]))
            size = int(count)
            assert int(frames[row]) == size
            torch.testing.assert_close(hidden[row, :size], alone[0, :size], atol=1e-4, rtol=1e-4)
            assert (hidden[row, size:] == 0).all()


def test_the_encoder_pools_with_learned_weights_and_its_layers_have_one_width() -> None:
    features, lengths = torch.randn(2, 50, BINS), torch.tensor([50, 33])
    assert ENCODER.subsampling == 4
    assert list(ENCODER.pools) == ["2"]
    with torch.no_grad():
        outputs = list(ENCODER.each_layer(features, lengths))
        assert [hidden.shape[-1] for hidden, _ in outputs] == [8, 12, 12, 12]
        before = ENCODER.layers[1](*outputs[1])
        expected, halves = ENCODER.pools["2"](before, outputs[1][1])
    torch.testing.assert_close(outputs[2][0], expected)
    assert outputs[2][1].tolist() == halves.tolist()


def test_over_fired_embeddings_it_is_a_block_of_the_whole_width() -> None:
    layer = make_encoder(FRONTEND, CONFIG, BINS).context_layer(1)
    assert isinstance(layer, ZipformerBlock)
    assert layer.norm.bias.shape == (12,)
    assert layer(torch.randn(2, 5, 12), torch.tensor([5, 0])).isfinite().all()


PUBLISHED = {
    "small": (22_118_279, [2] * 6, [192, *[256] * 5], [512, *[768] * 5]),
    "medium": (64_250_603, ZipformerConfig().blocks, ZipformerConfig().dims, ZipformerConfig().feedforward),
    "large": (147_010_094, [2, 2, 4, 5, 4, 2], [192, 256, 512, 768, 512, 256], [512, 768, 1536, 2048, 1536, 768]),
}  # fmt: skip
"""Parameters with a CTC head over 500 pieces, as icefall's RESULTS.md for LibriSpeech has them."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_sizes_are_possible(name: str) -> None:
    published, blocks, dims, feedforward = PUBLISHED[name]
    config = ZipformerConfig(blocks=blocks, dims=dims, feedforward=feedforward, pool_after=[6])
    with torch.device("meta"):
        stacks = [ZipformerStack(config, number) for number in range(1, 7)]
        pool = Downsample(2)
    own = sum(each.numel() for module in (*stacks, pool) for each in module.parameters())
    convolutions = (9 + 1) * 8 + (9 * 8 + 1) * 32 + (9 * 32 + 1) * 128
    convnext = (49 + 1) * 128 + (128 + 1) * 384 + (384 + 1) * 128
    head = (max(dims) + 1) * 500
    whole = own + convolutions + convnext + (128 * 19 + 1) * 192 + head
    unused = sum(count * dim for count, dim in zip(blocks, dims))
    assert (
        whole + unused == published
    )  # their block has a second vector of bypass weights, which it never reads


def test_the_packaged_recipe_is_of_the_conformers_size() -> None:
    assert describe(load_recipe("speechocean762/cif")).shipped == 4_253_259
    recipe = load_recipe("speechocean762/cif +curriculum/short +encoder/zipformer")
    described = describe(recipe)
    assert described.shipped == 4_243_729
    assert abs(described.shipped / 4_253_259 - 1) < 0.03
    assert "6 zipformer stacks: blocks 1 1 1 1 1 1, rates 1/1 1/2 1/4 1/8 1/4 1/2" in described.lines[1]
    assert described.lines[1].endswith("pooled after 6: one frame every 40 ms")
    # All else is the Conformer's, and so is every training before, but for encoder, optimiser and schedule.
    student, training = recipe.student, recipe.training
    assert (training.optimiser, training.schedule) == ("scaled_adam", "eden")
    for step in ("cif", "ctc", "pieces", "warm"):
        other = load_recipe(f"speechocean762/{step} +curriculum/short")
        own = load_recipe(f"speechocean762/{step} +curriculum/short +encoder/zipformer")
        straight = 1000 if step == "warm" else 0
        assert isinstance(student.encoder, ZipformerConfig)
        encoder = replace(student.encoder, straight_steps=straight)
        assert own.student == replace(other.student, frontend=student.frontend, encoder=encoder)
        start = other.training.warm_start and f"{other.training.warm_start} +encoder/zipformer"
        assert own.training == replace(
            other.training, warm_start=start, optimiser="scaled_adam", schedule="eden",
            peak_lr=training.peak_lr, eden_steps=training.eden_steps, eden_epochs=training.eden_epochs,
        )  # fmt: skip
        assert (own.data, own.tokenizer, own.augment) == (other.data, other.tokenizer, other.augment)
        assert own.name == f"speechocean762/{step}+curriculum-short+encoder-zipformer"
