from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retort.nn.conformer import (
    ConformerConfig,
    ConformerLayer,
    ConvolutionBlock,
    FeedForward,
    TransformerLayer,
)
from retort.nn.masks import attention_mask, valid_mask

DIM = 8


def layer(kind: str, positions: str) -> nn.Module:
    torch.manual_seed(0)
    config = ConformerConfig(
        dim=DIM, heads=2, feedforward=16, kernel=5, positions=positions, dropout=0.0, attention_dropout=0.0
    )
    if kind == "transformer":
        return TransformerLayer(config).eval()
    built = ConformerLayer(config)
    assert built.convolution.batch_norm.running_mean is not None
    built.convolution.batch_norm.running_mean.normal_()
    return built.eval()


def test_the_convolution_block_is_its_formula() -> None:
    block = ConvolutionBlock(DIM, 5, "batch", 0.0).eval()
    hidden = torch.randn(1, 9, DIM)
    out = block(hidden, torch.ones(1, 9, dtype=torch.bool))
    content, gate = block.gate(block.norm(hidden)).chunk(2, dim=-1)
    padded = F.pad(content * gate.sigmoid(), (0, 0, 2, 2))
    kernel = block.depthwise.weight[:, 0].T  # (5, dim)
    mixed = torch.stack([(padded[:, t : t + 5] * kernel).sum(1) for t in range(9)], dim=1)
    norm = block.batch_norm
    assert norm is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scaled = (mixed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(out, block.output(scaled * scaled.sigmoid()), atol=1e-6, rtol=1e-5)


def test_padding_enters_neither_the_convolution_nor_its_statistics() -> None:
    torch.manual_seed(0)
    left, right = ConvolutionBlock(DIM, 5, "batch", 0.0), ConvolutionBlock(DIM, 5, "batch", 0.0)
    right.load_state_dict(left.state_dict())
    hidden = torch.randn(1, 12, DIM)
    hidden[:, 7:] = 1e3
    out = left(hidden, valid_mask(torch.tensor([7]), 12))
    expected = right(hidden[:, :7], torch.ones(1, 7, dtype=torch.bool))
    torch.testing.assert_close(out[:, :7], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left.state_dict(), right.state_dict())


def test_a_conformer_layer_is_two_halves_around_attention_and_convolution() -> None:
    built = layer("conformer", "relative")
    assert isinstance(built, ConformerLayer)
    hidden, lengths = torch.randn(1, 6, DIM), torch.tensor([6])
    step = hidden + built.before(hidden) / 2
    step = step + built.attention(built.attention_norm(step), attention_mask(lengths, 6))
    step = step + built.convolution(step, valid_mask(lengths, 6))
    step = step + built.after(step) / 2
    torch.testing.assert_close(built(hidden, lengths), built.norm(step))


def test_the_feed_forward_block_is_its_formula() -> None:
    block = FeedForward(DIM, 16, 0.1).eval()
    hidden = torch.randn(3, DIM)
    expanded = F.linear(block.norm(hidden), block.expand.weight, block.expand.bias)
    expected = F.linear(expanded * expanded.sigmoid(), block.contract.weight, block.contract.bias)
    torch.testing.assert_close(block(hidden), expected)


@pytest.mark.parametrize("positions", ["relative", "rotary"])
@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_padding_changes_no_valid_frame(kind: str, positions: str) -> None:
    built = layer(kind, positions)
    hidden = torch.randn(3, 11, DIM)
    lengths = torch.tensor([11, 4, 1])
    out = built(hidden, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = built(hidden[index : index + 1, :length], lengths[index : index + 1])
        torch.testing.assert_close(out[index, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_padding_gets_no_gradient_from_valid_frames(kind: str) -> None:
    built = layer(kind, "relative").train()
    hidden = torch.randn(2, 7, DIM, requires_grad=True)
    lengths = torch.tensor([7, 3])
    mask = valid_mask(lengths, 7)
    (built(hidden, lengths) * mask[..., None]).square().sum().backward()
    assert hidden.grad is not None
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(-1) > 0).all()


def test_parameters_of_the_published_layer() -> None:
    built = ConformerLayer(ConformerConfig())
    assert sum(each.numel() for each in built.parameters()) == 2_634_496


def test_the_layer_norm_variant_has_no_statistics_and_learns_the_same_way_in_both_modes() -> None:
    block = ConvolutionBlock(DIM, 5, "layer", 0.0)
    hidden = torch.randn(2, 9, DIM)
    mask = torch.ones(2, 9, dtype=torch.bool)
    assert not list(block.buffers())
    torch.testing.assert_close(block.train()(hidden, mask), block.eval()(hidden, mask))
    torch.testing.assert_close(block(hidden[:1], mask[:1]), block(hidden, mask)[:1])
