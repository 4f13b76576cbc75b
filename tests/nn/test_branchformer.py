from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retort.config.loading import load_recipe
from retort.info.describe import describe
from retort.nn.branchformer import (
    AverageMerge,
    BranchformerConfig,
    BranchformerLayer,
    ConvolutionMerge,
    EBranchformerConfig,
    EBranchformerLayer,
    GatedMlp,
    SpatialGate,
)
from retort.nn.encoder import make_encoder
from retort.nn.masks import attention_mask, valid_mask
from tiny_students import FRONTEND

DIM, BINS = 8, 12
SIZES: dict[str, Any] = {
    "dim": DIM, "heads": 2, "cgmlp": 12, "cgmlp_kernel": 5, "dropout": 0.0, "attention_dropout": 0.0
}  # fmt: skip
Config = BranchformerConfig | EBranchformerConfig
KINDS = [
    (kind, merge, positions)
    for kind, merge in (("branchformer", "concat"), ("branchformer", "average"), ("e_branchformer", "concat"))
    for positions in ("relative", "rotary")
]


def stirred(module: nn.Module) -> nn.Module:
    """With weights at random everywhere: a fresh gate lets everything through, whatever it is given."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return module.eval()


def layer(kind: str, merge: str, positions: str) -> nn.Module:
    return stirred(built(config(kind, merge, positions=positions, **SIZES)))


def built(sizes: Config) -> nn.Module:
    return BranchformerLayer(sizes) if isinstance(sizes, BranchformerConfig) else EBranchformerLayer(sizes)


def config(kind: str, merge: str, feedforward: int = 16, merge_kernel: int = 3, **sizes: Any) -> Config:
    if kind == "branchformer":
        return BranchformerConfig(merge=merge, **sizes)
    return EBranchformerConfig(feedforward=feedforward, merge_kernel=merge_kernel, **sizes)


def normed(values: Tensor, norm: nn.LayerNorm) -> Tensor:
    scaled = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt()
    return scaled * norm.weight + norm.bias


def gated_slowly(gate: SpatialGate, hidden: Tensor) -> Tensor:
    """One utterance `(T, width)`, number by number."""
    frames, half = len(hidden), hidden.shape[1] // 2
    kernel = gate.depthwise.weight.shape[-1]
    rows = [normed(hidden[t, half:], gate.norm) for t in range(frames)]
    out = torch.zeros(frames, half, dtype=hidden.dtype)
    for t in range(frames):
        for channel in range(half):
            total = gate.depthwise.bias[channel]
            for place in range(kernel):
                source = t + place - kernel // 2
                if 0 <= source < frames:
                    total = total + gate.depthwise.weight[channel, 0, place] * rows[source][channel]
            out[t, channel] = hidden[t, channel] * total
    return out


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    kernel=st.sampled_from([1, 3, 7]),
    half=st.integers(1, 4),
    garbage=st.sampled_from([0.0, 1e9, float("nan")]),
)
@settings(max_examples=30, deadline=None)
def test_the_gate_is_a_loop_over_frames_and_channels(
    lengths: list[int], kernel: int, half: int, garbage: float
) -> None:
    gate = stirred(SpatialGate(2 * half, kernel)).double()
    hidden = torch.randn(len(lengths), max(*lengths, 1), 2 * half, dtype=torch.float64)
    for row, length in enumerate(lengths):
        hidden[row, length:] = garbage
    found = gate(hidden, valid_mask(torch.tensor(lengths), hidden.shape[1]))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], gated_slowly(gate, hidden[row, :length]))


def test_a_fresh_gate_lets_everything_through() -> None:
    hidden = torch.randn(1, 20, 6)
    found = SpatialGate(6, 5)(hidden, torch.ones(1, 20, dtype=torch.bool))
    torch.testing.assert_close(found, hidden[..., :3], atol=1e-4, rtol=1e-4)


def test_the_gated_mlp_is_its_formula() -> None:
    block = stirred(GatedMlp(DIM, 12, 5, 0.1)).double()
    hidden = torch.randn(1, 6, DIM, dtype=torch.float64)
    rows = torch.stack([normed(frame, block.norm) for frame in hidden[0]])
    expanded = rows @ block.expand.weight.T + block.expand.bias
    expanded = expanded * 0.5 * (1 + torch.erf(expanded / 2**0.5))
    expected = gated_slowly(block.gate, expanded) @ block.contract.weight.T + block.contract.bias
    torch.testing.assert_close(block(hidden, torch.ones(1, 6, dtype=torch.bool))[0], expected)


def test_the_average_has_a_pair_of_weights_an_utterance() -> None:
    merge = stirred(AverageMerge(DIM)).double()
    lengths = torch.tensor([5, 2])
    branches = tuple(torch.randn(2, 5, DIM, dtype=torch.float64) for _ in range(2))
    found = merge(*branches, lengths)
    for row, length in enumerate(lengths.tolist()):
        scores = []
        for branch, pooling, score in zip(branches, merge.pooling, merge.score):
            frames = branch[row, :length]
            shares = torch.stack([(pooling(frame) / DIM**0.5).exp() for frame in frames])
            pooled = sum(share * frame for share, frame in zip(shares / shares.sum(), frames))
            scores.append(score(pooled).exp())
        mixed = sum(score * branch[row, :length] for score, branch in zip(scores, branches)) / sum(scores)
        torch.testing.assert_close(found[row, :length], merge.output(mixed))


def test_the_merge_over_time_is_its_formula() -> None:
    merge = stirred(ConvolutionMerge(DIM, 3)).double()
    attended, gated = (torch.randn(1, 6, DIM, dtype=torch.float64) for _ in range(2))
    found = merge(attended, gated, valid_mask(torch.tensor([4]), 6))[0, :4]
    both = F.pad(torch.cat((attended, gated), -1)[0, :4], (0, 0, 1, 1))
    kernel = merge.depthwise.weight[:, 0].T  # (3, 2 dim)
    mixed = torch.stack([(both[t : t + 3] * kernel).sum(0) for t in range(4)]) + merge.depthwise.bias
    torch.testing.assert_close(found, merge.output(both[1:5] + mixed))


@pytest.mark.parametrize("merge", ["concat", "average"])
def test_a_branchformer_layer_merges_two_branches_of_one_input(merge: str) -> None:
    built = layer("branchformer", merge, "relative")
    assert isinstance(built, BranchformerLayer)
    hidden, lengths = torch.randn(1, 6, DIM), torch.tensor([6])
    within = built.branches
    attended = within.attention(within.attention_norm(hidden), attention_mask(lengths, 6))
    gated = within.gated(hidden, valid_mask(lengths, 6))
    if merge == "concat":
        merged = built.merge.output(torch.cat((attended, gated), -1))
    else:
        merged = built.merge(attended, gated, lengths)
    torch.testing.assert_close(built(hidden, lengths), built.norm(hidden + merged))


def test_an_e_branchformer_layer_has_half_a_feed_forward_to_each_side() -> None:
    built = layer("e_branchformer", "concat", "rotary")
    assert isinstance(built, EBranchformerLayer)
    hidden, lengths = torch.randn(1, 6, DIM), torch.tensor([6])
    step = hidden + built.before(hidden) / 2
    step = step + built.merge(*built.branches(step, lengths), valid_mask(lengths, 6))
    step = step + built.after(step) / 2
    torch.testing.assert_close(built(hidden, lengths), built.norm(step))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_gets_no_gradient_from_valid_frames(kind: tuple[str, str, str]) -> None:
    hidden = torch.randn(2, 7, DIM, requires_grad=True)
    lengths = torch.tensor([7, 3])
    mask = valid_mask(lengths, 7)
    (layer(*kind)(hidden, lengths) * mask[..., None]).square().sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients(kind: tuple[str, str, str]) -> None:
    built = layer(*kind).double()
    hidden = torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 2])
    inputs = (hidden, *built.parameters())
    assert torch.autograd.gradcheck(
        lambda hidden, *_: built(hidden, lengths)[valid_mask(lengths, 4)], inputs, fast_mode=True
    )


ENCODERS = {}
for _kind in KINDS:
    _config = config(
        *_kind[:2], 32, 5, positions=_kind[2], layers=2, dim=16, heads=2, cgmlp=24, cgmlp_kernel=7, pool_after=[1]
    )
    ENCODERS[_kind] = stirred(make_encoder(FRONTEND, _config, BINS))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 8), st.integers(9, 50)), min_size=1, max_size=4),
    garbage=st.sampled_from([0.0, 1e4, float("nan")]),
    extra=st.integers(0, 9),
)
@settings(max_examples=15, deadline=None)
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    kind: tuple[str, str, str], lengths: list[int], garbage: float, extra: int
) -> None:
    encoder = ENCODERS[kind]
    utterances = [torch.randn(length, BINS) for length in lengths]
    features = torch.full((len(lengths), max(lengths) + extra, BINS), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : len(utterance)] = utterance
    with torch.no_grad():
        hidden, frames = encoder(features, torch.tensor(lengths))
        for row, utterance in enumerate(utterances):
            alone, count = encoder(utterance[None], torch.tensor([len(utterance)]))
            size = int(count)
            assert int(frames[row]) == size
            torch.testing.assert_close(hidden[row, :size], alone[0, :size], atol=1e-4, rtol=1e-4)
            assert (hidden[row, size:] == 0).all()


def parameters(config: Config) -> int:
    """Of one layer with rotary positions, as a formula."""
    dim, width, half = config.dim, config.cgmlp, config.cgmlp // 2
    norm = 2 * dim
    attention = norm + 4 * (dim * dim + dim)
    gate = 2 * half + half * config.cgmlp_kernel + half
    gated = norm + (dim * width + width) + gate + (half * dim + dim)
    if isinstance(config, BranchformerConfig):
        merge = 2 * dim * dim + dim if config.merge == "concat" else dim * dim + dim + 4 * (dim + 1)
        return attention + gated + merge + norm
    feedforward = norm + 2 * dim * config.feedforward + config.feedforward + dim
    merge = 2 * dim * (config.merge_kernel + 1) + 2 * dim * dim + dim
    return attention + gated + merge + norm + 2 * feedforward


@pytest.mark.parametrize("kind", ["branchformer", "e_branchformer"])
@pytest.mark.parametrize("merge", ["concat", "average"])
def test_parameters(kind: str, merge: str) -> None:
    for sizes in (SIZES, {"feedforward": 2048, "merge_kernel": 31}):
        settings = config(kind, merge, positions="rotary", **sizes)
        with torch.device("meta"):
            layer = built(settings)
        assert sum(each.numel() for each in layer.parameters()) == parameters(settings)


@pytest.mark.parametrize(("name", "wanted"), [("branchformer", 4_237_851), ("e_branchformer", 4_250_235)])
def test_the_packaged_recipes_are_of_the_conformers_size(name: str, wanted: int) -> None:
    conformer = load_recipe("speechocean762/cif")
    recipe = load_recipe(f"speechocean762/cif +curriculum/short +encoder/{name}")
    assert describe(conformer).shipped == 4_253_259
    described = describe(recipe)
    assert described.shipped == wanted
    assert abs(wanted / 4_253_259 - 1) < 0.03
    assert f"{name} layers" in described.lines[1]
    assert "cgMLP 768" in described.lines[1]
    assert ("feed-forward" in described.lines[1]) is (name == "e_branchformer")
    # All else is the Conformer's, and so is every training before, but for the encoder.
    for step in ("cif", "ctc", "pieces", "warm"):
        other = load_recipe(f"speechocean762/{step} +curriculum/short")
        own = load_recipe(f"speechocean762/{step} +curriculum/short +encoder/{name}")
        assert own.student == replace(other.student, encoder=recipe.student.encoder)
        start = other.training.warm_start and f"{other.training.warm_start} +encoder/{name}"
        assert own.training == replace(other.training, warm_start=start)
        assert (own.data, own.tokenizer, own.augment) == (other.data, other.tokenizer, other.augment)
        assert own.name == f"speechocean762/{step}+curriculum-short+encoder-{name}"
