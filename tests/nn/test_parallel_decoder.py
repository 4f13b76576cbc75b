"""The decoder of all tokens at once: what reaches what, and that padding and batches change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retort.nn.parallel_decoder import ParallelConfig, ParallelDecoder
from retort.nn.positions import rotary_table, rotate

ACOUSTIC, VOCABULARY = 6, 11
CONFIG = ParallelConfig(
    layers=2, dim=8, heads=2, feedforward=12, dropout=0.0, embedding_dropout=0.0
)
UNITS, FRAMES = [4, 1, 3], [7, 2, 9]


def build(cross: bool = True, dropout: float = 0.0) -> ParallelDecoder:
    torch.manual_seed(0)
    config = replace(CONFIG, cross_attention=cross, dropout=dropout, embedding_dropout=dropout)
    return ParallelDecoder(config, VOCABULARY, ACOUSTIC).double().eval()


def batch(filler: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    embeddings = torch.randn(3, 4, ACOUSTIC, generator=draw, dtype=torch.float64)
    memory = torch.randn(3, 9, ACOUSTIC, generator=draw, dtype=torch.float64)
    units, frames = torch.tensor(UNITS), torch.tensor(FRAMES)
    embeddings[torch.arange(4) >= units[:, None]] = filler
    memory[torch.arange(9) >= frames[:, None]] = filler
    return embeddings, units, memory, frames


def attend(layer: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of `(U, dim)` and `(T, dim)`, a head after the other."""
    heads = [
        (query[:, own] @ key[:, own].T / 2.0).softmax(-1) @ value[:, own]
        for own in (slice(0, 4), slice(4, 8))
    ]
    result: Tensor = layer.output(torch.cat(heads, -1))  # type: ignore[operator]
    return result


@torch.no_grad()
@pytest.mark.parametrize("cross", [True, False])
def test_it_is_the_layers_written_out(cross: bool) -> None:
    decoder, (embeddings, _, memory, _) = build(cross), batch()
    own, own_frames = embeddings[0], memory[0, :7]
    states, logits = decoder(own[None], torch.tensor([4]), own_frames[None], torch.tensor([7]))
    hidden = decoder.input(own)
    table = rotary_table(4, 4, torch.device("cpu"))
    for layer in decoder.layers:
        normed = layer.attention_norm(hidden)
        turned = [
            torch.cat([rotate(each[:, :4], table), rotate(each[:, 4:], table)], -1)
            for each in (layer.attention.query(normed), layer.attention.key(normed))
        ]
        hidden = hidden + attend(layer.attention, *turned, layer.attention.value(normed))
        if cross:
            asked = layer.cross.query(layer.cross_norm(hidden))
            hidden = hidden + attend(layer.cross, asked, layer.cross.key(own_frames), layer.cross.value(own_frames))
        forward = layer.feedforward
        hidden = hidden + forward.contract(F.silu(forward.expand(forward.norm(hidden))))
    torch.testing.assert_close(states[0], decoder.norm(hidden))
    torch.testing.assert_close(logits[0], decoder.norm(hidden) @ decoder.vocabulary.weight.T)


@torch.no_grad()
@pytest.mark.parametrize("filler", [0.0, 1e3])
@pytest.mark.parametrize("cross", [True, False])
def test_an_utterance_gives_the_same_alone_and_in_a_batch(cross: bool, filler: float) -> None:
    decoder, (embeddings, units, memory, frames) = build(cross), batch(filler)
    states, logits = decoder(embeddings, units, memory, frames)
    for row, (count, length) in enumerate(zip(UNITS, FRAMES)):
        one = slice(row, row + 1)
        alone = decoder(embeddings[one, :count], units[one], memory[one, :length], frames[one])
        torch.testing.assert_close(states[one, :count], alone[0])
        torch.testing.assert_close(logits[one, :count], alone[1])


@pytest.mark.parametrize("cross", [True, False])
def test_every_position_attends_to_the_others_and_without_cross_attention_to_no_frame(cross: bool) -> None:
    decoder, (embeddings, units, memory, frames) = build(cross), batch()
    embeddings.requires_grad_()
    memory.requires_grad_()
    decoder(embeddings, units, memory, frames)[1][0, 1].square().sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad[0].abs().sum(-1) > 0).all()
    assert not embeddings.grad[1:].any()
    assert (memory.grad is not None) == cross
    if memory.grad is not None:
        assert ((memory.grad[0].abs().sum(-1) > 0) == (torch.arange(9) < 7)).all()


@torch.no_grad()
def test_a_shown_token_is_its_row_of_the_output_layer() -> None:
    decoder, (embeddings, units, memory, frames) = build(), batch()
    tokens = torch.randint(VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(2))
    where = torch.tensor([[0, 1, 0, 1], [0] * 4, [1, 0, 0, 0]]).bool()
    found = decoder(embeddings, units, memory, frames, (tokens, where))[1]
    hidden = decoder.input(embeddings)
    hidden[where] = decoder.vocabulary.weight[tokens[where]] * 8**0.5
    for layer in decoder.layers:
        hidden = layer(hidden, units, memory, frames)
    torch.testing.assert_close(found, decoder.vocabulary(decoder.norm(hidden)))
    unseen = decoder(embeddings, units, memory, frames)[1]
    torch.testing.assert_close(found[1, :1], unseen[1, :1])
    assert (found[0] - unseen[0]).abs().amax() > 1e-3


@torch.no_grad()
def test_steps_do_not_depend_on_previous_tokens() -> None:
    decoder, (embeddings, units, memory, frames) = build(), batch()
    _, logits = decoder(embeddings, units, memory, frames)
    state = decoder.start(embeddings, units, memory, frames)
    first, state = decoder.step(state, torch.tensor([2, 2, 2]), embeddings[:, 0])
    assert torch.equal(first, logits[:, 0])
    state = state.select(torch.tensor([2, 0, 0, 1]))
    second, state = decoder.step(state, torch.tensor([5, 6, 7, 8]), embeddings[:, 1])
    assert torch.equal(second, logits[[2, 0, 0, 1], 1])
    assert torch.equal(decoder.step(state.select(torch.tensor([3])), second[:1], second)[0], logits[[1], 2])


def test_gradient() -> None:
    decoder, (embeddings, units, memory, frames) = build(), batch()
    share = torch.randn(3, 4, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    share[torch.arange(4) >= units[:, None]] = 0.0

    def total(fired: Tensor, own_frames: Tensor) -> Tensor:
        return (decoder(fired, units, own_frames, frames)[1] * share).sum()

    assert torch.autograd.gradcheck(total, (embeddings.requires_grad_(), memory.requires_grad_()))


def test_nothing_fired_and_no_memory() -> None:
    decoder = build()
    states, logits = decoder(
        torch.zeros(2, 0, ACOUSTIC).double(), torch.zeros(2, dtype=torch.int64), batch()[2][:2], torch.ones(2)
    )
    assert (states.shape, logits.shape) == ((2, 0, 8), (2, 0, VOCABULARY))
    with pytest.raises(ValueError, match="requires the encoder output"):
        decoder(*batch()[:2])
    build(cross=False)(*batch()[:2])
