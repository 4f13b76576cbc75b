from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.nn.transducer import (
    LEAST,
    Arcs,
    lattice_cells,
    packed_arcs,
    path_loss,
    token_frames,
    transducer_loss,
)

BLANK = 0


def draw(batch: int, frames: int, count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(batch, frames, count + 1, size, dtype=torch.float64, generator=generator)
    return logits, torch.randint(1, size, (batch, count), generator=generator)


def all_paths(logits: Tensor, tokens: list[int], monotonic: bool = False) -> list[tuple[float, list[int]]]:
    """Every path of one utterance, `logits (T, U + 1, V)`: its log-probability and the frame of each token."""
    log_probs = logits.log_softmax(-1).tolist()
    frames, found = len(log_probs), []
    choose = itertools.combinations if monotonic else itertools.combinations_with_replacement
    for places in choose(range(frames), len(tokens)):
        score, emitted = 0.0, 0
        for frame in range(frames):
            speaks = False
            while emitted < len(tokens) and places[emitted] == frame:
                score += log_probs[frame][emitted][tokens[emitted]]
                emitted, speaks = emitted + 1, True
            if not (monotonic and speaks):
                score += log_probs[frame][emitted][BLANK]
        found.append((score, list(places)))
    return found


def slow_loss(
    logits: Tensor, tokens: Tensor, lengths: list[int], token_lengths: list[int], monotonic: bool = False
) -> Tensor:
    """Cell by cell, differentiated by autograd; 0 without a path."""
    losses = []
    for row, (frames, count) in enumerate(zip(lengths, token_lengths)):
        log_probs = logits[row, :frames, : count + 1].log_softmax(-1)
        alpha: dict[tuple[int, int], Tensor] = {(0, 0): log_probs.new_zeros(())}
        for frame, emitted in itertools.product(range(frames + 1), range(count + 1)):
            ways = []
            if (frame - 1, emitted) in alpha:
                ways.append(alpha[frame - 1, emitted] + log_probs[frame - 1, emitted, BLANK])
            source = frame - monotonic
            if (source, emitted - 1) in alpha and source < frames:
                ways.append(alpha[source, emitted - 1] + log_probs[source, emitted - 1, int(tokens[row, emitted - 1])])
            if ways:
                alpha[frame, emitted] = torch.stack(ways).logsumexp(0)
        losses.append(-alpha.get((frames, count), log_probs.new_zeros(())))
    return torch.stack(losses)


@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize(("frames", "count"), [(1, 0), (1, 1), (4, 0), (4, 1), (5, 3), (4, 4), (3, 4)])
def test_it_is_the_sum_over_all_paths(frames: int, count: int, monotonic: bool) -> None:
    logits, tokens = draw(2, frames, count, 5, seed=frames + 7 * count)
    sizes = torch.tensor([frames] * 2), torch.tensor([count] * 2)
    losses = transducer_loss(logits, tokens, *sizes, reduction="none", monotonic=monotonic)
    for row in range(2):
        scores = [score for score, _ in all_paths(logits[row], tokens[row].tolist(), monotonic)]
        assert len(scores) == math.comb(frames if monotonic else frames + count - 1, count)
        if not scores:
            assert losses[row] == 0.0
            continue
        assert float(losses[row]) == pytest.approx(-float(torch.tensor(scores).double().logsumexp(0)))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 5)), min_size=1, max_size=4),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    monotonic=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40)
def test_values_and_gradients_are_those_of_the_slow_loop_whatever_is_padded(
    sizes: list[tuple[int, int]], extra: tuple[int, int], monotonic: bool, seed: int
) -> None:
    lengths, token_lengths = ([each[side] for each in sizes] for side in (0, 1))
    frames, count = max(lengths) + extra[0], max(token_lengths) + extra[1]
    logits, tokens = draw(len(sizes), frames, count, 4, seed)
    cells = lattice_cells(torch.tensor(lengths), torch.tensor(token_lengths), frames, count + 1)
    weights = torch.rand(len(sizes), dtype=torch.float64) + 0.5
    expected_in = logits.clone().requires_grad_()
    expected = slow_loss(expected_in, tokens, lengths, token_lengths, monotonic)
    if expected.requires_grad:
        (expected * weights).sum().backward()
    slopes = torch.zeros_like(logits) if expected_in.grad is None else expected_in.grad

    dirty = logits.masked_fill(~cells[..., None], float("nan")).requires_grad_()
    places = torch.tensor(lengths), torch.tensor(token_lengths)
    beyond = tokens.masked_fill(torch.arange(count) >= places[1][:, None], 99)
    losses = transducer_loss(dirty, beyond, *places, reduction="none", monotonic=monotonic)
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()
    torch.testing.assert_close(dirty.grad, slopes)

    packed = logits[cells].requires_grad_()
    arcs = packed_arcs(packed, beyond, places[1], cells)
    losses = path_loss(arcs, *places, reduction="none", monotonic=monotonic)
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()
    torch.testing.assert_close(packed.grad, slopes[cells])


@pytest.mark.parametrize("monotonic", [False, True])
def test_gradcheck(monotonic: bool) -> None:
    logits, tokens = draw(3, 4, 2, 3, seed=1)
    loss = partial(
        transducer_loss,
        tokens=tokens,
        lengths=torch.tensor([4, 2, 3]),
        token_lengths=torch.tensor([2, 1, 0]),
        reduction="sum",
        monotonic=monotonic,
    )
    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))


def test_reductions() -> None:
    logits, tokens = draw(3, 4, 2, 3)
    given = (logits, tokens, torch.tensor([4, 2, 3]), torch.tensor([2, 1, 0]))
    each = transducer_loss(*given, reduction="none")
    torch.testing.assert_close(transducer_loss(*given, reduction="sum"), each.sum())
    torch.testing.assert_close(transducer_loss(*given), each.mean())
    with pytest.raises(ValueError, match="reduction is 'max'"):
        transducer_loss(*given, reduction="max")


def test_another_blank() -> None:
    logits, tokens = draw(2, 5, 3, 6)
    lengths = torch.tensor([5, 4]), torch.tensor([3, 2])
    swapped = logits[..., [5, 1, 2, 3, 4, 0]]
    moved = tokens.where(tokens != 5, 0)
    torch.testing.assert_close(
        transducer_loss(swapped, moved, *lengths, blank=5), transducer_loss(logits, tokens, *lengths)
    )


def test_an_utterance_without_frames_costs_nothing() -> None:
    logits, tokens = draw(2, 4, 2, 3)
    logits = logits.requires_grad_()
    losses = transducer_loss(logits, tokens, torch.tensor([4, 0]), torch.tensor([2, 1]), reduction="none")
    losses.sum().backward()
    assert losses[1] == 0.0
    assert losses[0] > 0.0
    assert logits.grad is not None
    assert not logits.grad[1].any()
    nothing = transducer_loss(logits[:, :0], tokens, torch.tensor([0, 0]), torch.tensor([2, 1]))
    nothing.backward()
    assert float(nothing.detach()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_utterances_lose_no_precision(dtype: torch.dtype) -> None:
    logits, tokens = draw(2, 300, 60, 30, seed=4)
    lengths = torch.tensor([300, 170]), torch.tensor([60, 44])
    rounded = logits.to(dtype).requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    losses = [transducer_loss(each, tokens, *lengths, reduction="sum") for each in (rounded, exact)]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=1e-3)
    sum(each.double() for each in losses).backward()
    assert rounded.grad is not None
    assert exact.grad is not None
    assert rounded.grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_autocast_changes_nothing() -> None:
    logits, tokens = draw(2, 40, 9, 12)
    lengths = torch.tensor([40, 31]), torch.tensor([9, 5])
    plain = transducer_loss(logits.float(), tokens, *lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transducer_loss(logits.float(), tokens, *lengths), plain)


def test_what_is_impossible_is_only_very_improbable() -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[..., BLANK] = -math.inf  # it cannot end
    loss = transducer_loss(logits.requires_grad_(), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
    loss.backward()
    assert -LEAST < float(loss.detach()) < -3 * LEAST
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4),
    monotonic=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40)
def test_the_best_path(sizes: list[tuple[int, int]], monotonic: bool, seed: int) -> None:
    lengths, token_lengths = (torch.tensor([each[side] for each in sizes]) for side in (0, 1))
    count = int(token_lengths.max())
    logits, tokens = draw(len(sizes), int(lengths.max()), count, 4, seed)
    cells = lattice_cells(lengths, token_lengths, logits.shape[1], count + 1)
    arcs = packed_arcs(logits[cells], tokens, token_lengths, cells)
    frames = token_frames(arcs, lengths, token_lengths, monotonic=monotonic)
    assert frames.shape == (len(sizes), count)
    for row, (length, emitted) in enumerate(sizes):
        paths = all_paths(logits[row, :length, : emitted + 1], tokens[row, :emitted].tolist(), monotonic)
        if paths:
            assert frames[row, :emitted].tolist() == max(paths)[1]
        assert ((frames[row] >= 0) & (frames[row] < length)).all()
        assert not frames[row, emitted:].any()


def test_an_utterance_without_frames_has_no_frames_of_tokens() -> None:
    arcs = Arcs(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))
    frames = token_frames(arcs, torch.tensor([0, 3]), torch.tensor([2, 1]))
    assert frames[0].tolist() == [0, 0]
    assert token_frames(arcs, torch.tensor([3, 3]), torch.tensor([0, 0])).shape == (2, 2)


def test_no_further_memory_of_the_size_of_the_logits_is_used() -> None:
    logits, tokens = draw(2, 30, 8, 50)
    logits = logits.requires_grad_()
    kept: list[int] = []

    def keep(each: Tensor) -> Tensor:
        if each.data_ptr() != logits.data_ptr():
            kept.append(each.numel())
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        transducer_loss(logits, tokens, torch.tensor([30, 20]), torch.tensor([8, 3])).backward()
    assert sum(kept) < logits.numel() / 4


@pytest.mark.parametrize(
    ("lengths", "token_lengths", "message"),
    [([5, 4], [2, 2], "go beyond"), ([4, 4], [3, 2], "go beyond"), ([4], [2], "tokens")],
)
def test_lengths_that_do_not_fit(lengths: list[int], token_lengths: list[int], message: str) -> None:
    logits, tokens = draw(2, 4, 2, 3)
    with pytest.raises(ValueError, match=message):
        transducer_loss(logits, tokens, torch.tensor(lengths), torch.tensor(token_lengths))
    with pytest.raises(ValueError, match="floating point"):
        transducer_loss(logits[0], tokens, torch.tensor([4, 4]), torch.tensor([2, 2]))


def test_as_many_scans_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    scan = Tensor.logcumsumexp
    monkeypatch.setattr(Tensor, "logcumsumexp", lambda self, dim: calls.append(dim) or scan(self, dim))
    logits, tokens = draw(2, 50, 4, 6)
    loss = transducer_loss(logits.requires_grad_(), tokens, torch.tensor([50, 50]), torch.tensor([4, 4]))
    assert len(calls) == 4
    loss.backward()
    assert len(calls) == 8
    assert F.softplus(loss.detach()) > 0.0
