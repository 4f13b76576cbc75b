"""Attention to a window of frames around each token's fire."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retort.nn.window import FrameMemory, WindowAttention, fire_frames

DIM, SOURCE, HEADS = 8, 6, 2


def build(window: int, seed: int = 0) -> WindowAttention:
    torch.manual_seed(seed)
    made = WindowAttention(DIM, SOURCE, HEADS, window).double().eval()
    torch.nn.init.normal_(made.distances)
    return made


def slow(module: WindowAttention, state: Tensor, hidden: Tensor, place: int) -> Tensor:
    """One token `(DIM,)` over the valid frames `(T, SOURCE)` of its utterance, head by head and frame by frame."""
    frames = range(max(0, place - module.window), min(len(hidden), place + module.window + 1))
    if not frames:
        return module.output(torch.zeros(DIM, dtype=state.dtype))
    query, size, heads = module.query(module.norm(state)), DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = torch.stack(
            [
                module.key(hidden[frame])[part] @ query[part] / math.sqrt(size)
                + module.distances[head, frame - place + module.window]
                for frame in frames
            ]
        )
        values = torch.stack([module.value(hidden[frame])[part] for frame in frames])
        heads.append(scores.softmax(0) @ values)
    return module.output(torch.cat(heads))


@torch.no_grad()
@given(st.integers(1, 4), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 10**6))
def test_it_is_attention_to_the_frames_around_the_fire(window: int, lengths: list[int], seed: int) -> None:
    """Whatever is after the lengths, in whatever batch, all at once or token by token."""
    module, generator = build(window, seed), torch.Generator().manual_seed(seed)
    batch, tokens = len(lengths), 3
    hidden = torch.full((batch, 8, SOURCE), float("nan"), dtype=torch.float64)
    for row, length in enumerate(lengths):
        hidden[row, :length] = torch.randn(length, SOURCE, dtype=torch.float64, generator=generator)
    hidden[:, max(lengths) :] = 0.0
    hidden = hidden.nan_to_num(3.0)
    places = torch.stack([torch.randint(max(1, each), (tokens,), generator=generator) for each in lengths])
    states = torch.randn(batch, tokens, DIM, dtype=torch.float64, generator=generator)
    memory = module.remember(hidden, torch.tensor(lengths), places)
    found = module(states, memory)
    assert found.isfinite().all()
    for row, length in enumerate(lengths):
        for token in range(tokens):
            expected = slow(module, states[row, token], hidden[row, :length], int(places[row, token]))
            torch.testing.assert_close(found[row, token], expected)
            one = module(states[row : row + 1, token : token + 1], memory.select(torch.tensor([row])), token)
            torch.testing.assert_close(one[0, 0], found[row, token])


def test_gradients() -> None:
    module = build(1)
    lengths, places = torch.tensor([4, 2, 0]), torch.tensor([[0, 3], [1, 1], [0, 0]])
    hidden = torch.randn(3, 4, SOURCE, dtype=torch.float64, requires_grad=True)
    states = torch.randn(3, 2, DIM, dtype=torch.float64, requires_grad=True)

    def attended(states: Tensor, hidden: Tensor) -> Tensor:
        result: Tensor = module(states, module.remember(hidden, lengths, places))
        return result

    assert torch.autograd.gradcheck(attended, (states, hidden))
    (gradient,) = torch.autograd.grad(attended(states, hidden).square().sum(), hidden)
    assert not gradient[1, 2:].any()
    assert not gradient[2].any()
    assert gradient[0].any(-1).all()


def test_hypotheses_share_the_frames_of_their_utterance() -> None:
    module = build(2)
    memory = module.remember(
        torch.randn(2, 9, SOURCE, dtype=torch.float64), torch.tensor([9, 6]), torch.tensor([[1, 4], [0, 5]])
    )
    selected = memory.select(torch.tensor([1, 1, 0])).select(torch.tensor([2, 0]))
    assert isinstance(selected, FrameMemory)
    assert selected.keys is memory.keys
    states = torch.randn(2, 1, DIM, dtype=torch.float64)
    one = module(states, selected, 1)
    torch.testing.assert_close(one, module(states, memory, 1))


def test_the_frame_of_a_fire() -> None:
    """A token that is complete at 2.0 frames ends with frame 1; one at 2.1 within frame 2; never beyond the last."""
    times = torch.tensor([[0.4, 2.0, 2.1, 6.0], [1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert fire_frames(times, torch.tensor([6, 2, 0])).tolist() == [[0, 1, 2, 5], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_no_token_and_no_frame() -> None:
    module = build(1)
    memory = module.remember(
        torch.zeros(2, 0, SOURCE, dtype=torch.float64), torch.zeros(2).long(), torch.zeros(2, 0).long()
    )
    assert module(torch.zeros(2, 0, DIM, dtype=torch.float64), memory).shape == (2, 0, DIM)
