"""The CIF step against a sequential float64 reference, frame by frame and token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.nn.cif import FiredTokens, integrate_and_fire

DIM = 5


def fire_one(hidden: Tensor, alphas: Tensor, target: int | None, tail: float) -> tuple[Tensor, list[float]]:
    """Tokens (U, D) and fire times of one utterance, float64: pour each frame's weight into tokens."""
    hidden, weights = hidden.double(), alphas.double().clamp_min(0.0)
    if target is not None:
        total = weights.sum()
        weights = torch.ones_like(weights) * target / len(weights) if total == 0 else weights * target / total
    filled: Tensor = weights.new_zeros(())
    state = hidden.new_zeros(hidden.size(1))
    tokens: list[Tensor] = []
    times, last_weight = [], 0
    for index, frame in enumerate(hidden):
        left = weights[index]
        last_weight = index + 1 if left > 0 else last_weight
        while filled + left >= 1.0 and (target is None or len(tokens) < target - 1):
            taken = 1.0 - filled
            tokens.append(state + taken * frame)
            left = left - taken
            times.append(index + 1 - (left / weights[index]).item())
            filled, state = torch.zeros_like(filled), torch.zeros_like(state)
        filled, state = filled + left, state + left * frame
    if target is not None and target > 0:
        tokens.append(state)
        times.append(last_weight)
    elif target is None and filled > tail:
        tokens.append(state / filled)
        times.append(len(hidden))
    return torch.stack(tokens) if tokens else hidden.new_zeros(0, hidden.size(1)), times


def compare(
    fired: FiredTokens, hidden: Tensor, alphas: Tensor, lengths: list[int], targets: list[int] | None
) -> None:
    """Assert that every utterance is what the reference says, and zero after it."""
    for row, length in enumerate(lengths):
        target = None if targets is None else targets[row]
        tokens, when = fire_one(hidden[row, :length], alphas[row, :length], target, 0.5)
        count = len(tokens)
        assert int(fired.lengths[row]) == count
        torch.testing.assert_close(fired.embeddings[row, :count].double(), tokens, rtol=1e-5, atol=2e-6)
        times = torch.tensor(when, dtype=torch.float64)
        torch.testing.assert_close(fired.fire_times[row, :count].double(), times, rtol=1e-5, atol=1e-5)
        assert not fired.embeddings[row, count:].any()
        assert not fired.fire_times[row, count:].any()
        valid = alphas[row, :length].double().clamp_min(0.0)
        torch.testing.assert_close(fired.quantity[row].double(), valid.sum(), rtol=1e-6, atol=1e-9)


def random_batch(
    lengths: list[int], high: float, zeros: float, seed: int, padding: float = math.nan
) -> tuple[Tensor, Tensor]:
    """hidden (B, T, D) and alphas (B, T) with a share of exact zeros, and `padding` after the lengths."""
    generator = torch.Generator().manual_seed(seed)
    frames = max(lengths, default=0) + seed % 3
    hidden = torch.randn(len(lengths), frames, DIM, generator=generator)
    alphas = torch.rand(len(lengths), frames, generator=generator) * high
    alphas *= torch.rand(len(lengths), frames, generator=generator) >= zeros
    outside = torch.arange(frames) >= torch.tensor(lengths)[:, None]
    return hidden.masked_fill(outside[:, :, None], padding), alphas.masked_fill(outside, padding)


def clear_of_kinks(alphas: Tensor, lengths: list[int]) -> bool:
    """Whether rounding cannot decide how many tokens fire or whether the rest is one."""
    rests = [float(alphas[row, :length].double().sum()) % 1.0 for row, length in enumerate(lengths)]
    return all(rest == 0.0 or min(abs(rest - 0.5), rest, 1.0 - rest) > 1e-4 for rest in rests)


cases = {
    "lengths": st.lists(st.integers(0, 25), min_size=1, max_size=4),
    "high": st.floats(0.05, 4.0),
    "zeros": st.sampled_from([0.0, 0.3, 0.9]),
    "padding": st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30]),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=160, deadline=None)
@given(**cases, scaled=st.booleans())
def test_equals_the_reference(
    lengths: list[int], high: float, zeros: float, padding: float, seed: int, scaled: bool
) -> None:
    hidden, alphas = random_batch(lengths, high, zeros, seed, padding)
    targets = [(seed // 7 + 13 * row) % 40 if length else 0 for row, length in enumerate(lengths)]
    if scaled:
        fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths), torch.tensor(targets))
        compare(fired, hidden, alphas, lengths, targets)
    elif clear_of_kinks(alphas, lengths):
        fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths))
        compare(fired, hidden, alphas, lengths, None)


@settings(max_examples=40, deadline=None)
@given(cases["lengths"], st.booleans(), cases["padding"], cases["seed"])
def test_gradients_equal_the_references_and_ignore_padding(
    lengths: list[int], scaled: bool, padding: float, seed: int
) -> None:
    hidden, alphas = random_batch(lengths, 1.7, 0.0, seed, padding)
    if not clear_of_kinks(alphas, lengths):
        return
    targets = [length // 2 + 1 if length else 0 for length in lengths] if scaled else None
    given_targets = None if targets is None else torch.tensor(targets)
    _ = hidden.requires_grad_(), alphas.requires_grad_()
    fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths), given_targets)
    weight = torch.randn(fired.embeddings.shape, generator=torch.Generator().manual_seed(seed))
    loss = (fired.embeddings * weight).sum() + (fired.quantity**2).sum()
    got = torch.autograd.grad(loss, (hidden, alphas))
    for row, length in enumerate(lengths):
        h = hidden[row, :length].detach().double().requires_grad_()
        a = alphas[row, :length].detach().double().requires_grad_()
        tokens = fire_one(h, a, None if targets is None else targets[row], 0.5)[0]
        expected = torch.autograd.grad(
            (tokens * weight[row, : len(tokens)]).sum() + a.sum() ** 2, (h, a), allow_unused=True
        )
        for mine, true in zip(got, expected):
            if true is not None:
                scale = max(1.0, float(true.abs().max())) if true.numel() else 1.0
                torch.testing.assert_close(mine[row, :length].double(), true, rtol=0.0, atol=1e-5 * scale)
            assert not mine[row, length:].any()


@pytest.mark.parametrize("high", [0.6, 3.5])
@pytest.mark.parametrize("targets", [None, [6, 3, 0, 1], [25, 1, 0, 9]])
def test_gradcheck(high: float, targets: list[int] | None) -> None:
    hidden, alphas = random_batch([8, 5, 0, 3], high, 0.0, 7, padding=0.0)
    lengths = torch.tensor([8, 5, 0, 3])
    given_targets = None if targets is None else torch.tensor(targets)
    inputs = (hidden.double().requires_grad_(), (alphas.double() + 0.01).requires_grad_())

    def outputs(hidden: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
        fired = integrate_and_fire(hidden, alphas, lengths, given_targets)
        return fired.embeddings, fired.quantity

    assert torch.autograd.gradcheck(outputs, inputs)


def test_a_zero_weight_at_the_end_has_the_gradient_of_more_weight() -> None:
    hidden = torch.randn(1, 4, DIM, dtype=torch.float64)
    alphas = torch.tensor([[0.4, 0.9, 0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    lengths, targets = torch.tensor([4]), torch.tensor([2])
    weight = torch.randn(1, 2, DIM, dtype=torch.float64)

    def loss(alphas: Tensor) -> Tensor:
        return (integrate_and_fire(hidden, alphas, lengths, targets).embeddings * weight).sum()

    (grad,) = torch.autograd.grad(loss(alphas), alphas)
    step = torch.tensor([[0.0, 0.0, 0.0, 1e-7]], dtype=torch.float64)
    slope = (loss(alphas + step) - loss(alphas)) / 1e-7
    torch.testing.assert_close(grad[0, 3], slope.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_alone_and_in_any_batch_bit_for_bit(scaled: bool) -> None:
    lengths = [40, 7, 23, 1, 0, 31]
    hidden, alphas = random_batch(lengths, 1.3, 0.1, 2)
    targets = torch.tensor([11, 7, 2, 0, 0, 40]) if scaled else None
    _ = hidden.requires_grad_(), alphas.requires_grad_()
    together = integrate_and_fire(hidden, alphas, torch.tensor(lengths), targets)
    weight = torch.randn(together.embeddings.shape)
    weight[torch.arange(weight.size(1)) >= together.lengths[:, None]] = math.nan
    grads = torch.autograd.grad(together.embeddings, (hidden, alphas), weight)
    for row, length in enumerate(lengths):
        h = hidden[row : row + 1, :length].detach().requires_grad_()
        a = alphas[row : row + 1, :length].detach().requires_grad_()
        target = None if targets is None else targets[row, None]
        alone = integrate_and_fire(h, a, torch.tensor([length]), target)
        count = int(alone.lengths)
        assert count == int(together.lengths[row])
        assert torch.equal(alone.embeddings[0], together.embeddings[row, :count])
        assert torch.equal(alone.fire_times[0], together.fire_times[row, :count])
        assert torch.equal(alone.quantity[0], together.quantity[row])
        own = torch.autograd.grad((alone.embeddings * weight[row, None, :count]).sum(), (h, a))
        assert torch.equal(own[0][0], grads[0][row, :length])
        torch.testing.assert_close(own[1][0], grads[1][row, :length], rtol=1e-6, atol=1e-6)


def test_exactly_the_target_for_thousands_of_utterances() -> None:
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(20):
        lengths = torch.randint(1, 60, (200,), generator=generator)
        targets = torch.randint(1, 50, (200,), generator=generator)
        alphas = torch.rand(200, 60, generator=generator) ** 4 * 2
        fired = integrate_and_fire(torch.ones(200, 60, 2), alphas, lengths, targets)
        valid = torch.arange(fired.embeddings.size(1)) < targets[:, None]
        wrong += int((fired.lengths != targets).sum())
        # A frame of ones: every token is one unit of weight, or some weight is lost.
        torch.testing.assert_close(fired.embeddings, valid[:, :, None].expand(-1, -1, 2).float())
        times = fired.fire_times.masked_fill(~valid, math.inf)
        assert (times.diff(dim=1).nan_to_num(nan=0.0) >= 0).all()
        assert (fired.fire_times.amax(1) <= lengths).all()
    assert wrong == 0


def test_accurate_at_thirty_thousand_frames() -> None:
    hidden = 1.0 + torch.randn(1, 30_000, 16, generator=torch.Generator().manual_seed(3))
    alphas = torch.rand(1, 30_000, generator=torch.Generator().manual_seed(5)) * 0.4
    lengths, targets = torch.tensor([30_000]), torch.tensor([6_000])
    results = []
    for dtype in (torch.float32, torch.float64):
        h, a = hidden.to(dtype).requires_grad_(), alphas.to(dtype).requires_grad_()
        tokens = integrate_and_fire(h, a, lengths, targets).embeddings
        weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
        results.append([tokens.detach(), *torch.autograd.grad((tokens * weight).sum(), (h, a))])
    expected, _ = fire_one(hidden[0], alphas[0], 6_000, 0.5)
    torch.testing.assert_close(results[1][0][0], expected, rtol=0.0, atol=1e-9)
    for single, double, bar in zip(*results, (1e-6, 5e-7, 5e-7)):
        assert (single.double() - double).abs().max() <= bar * double.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_float32_result(dtype: torch.dtype) -> None:
    hidden, alphas = random_batch([30, 12], 0.9, 0.0, 5)
    hidden = hidden.to(dtype).requires_grad_()
    lengths, targets = torch.tensor([30, 12]), torch.tensor([9, 4])
    half = integrate_and_fire(hidden, alphas, lengths, targets)
    full = integrate_and_fire(hidden.detach().float(), alphas, lengths, targets)
    assert half.embeddings.dtype == dtype
    assert half.quantity.dtype == half.fire_times.dtype == torch.float32
    assert torch.equal(half.embeddings, full.embeddings.to(dtype))
    assert torch.autograd.grad(half.embeddings.sum(), hidden)[0].dtype == dtype


@pytest.mark.parametrize(("batch", "frames"), [(0, 0), (0, 6), (3, 0), (3, 6)])
@pytest.mark.parametrize("compat", [False, True])
def test_nothing_valid(batch: int, frames: int, compat: bool) -> None:
    hidden = torch.full((batch, frames, DIM), math.nan, requires_grad=True)
    alphas = torch.full((batch, frames), math.nan, requires_grad=True)
    zeros = torch.zeros(batch, dtype=torch.long)
    for targets in (None, zeros):
        fired = integrate_and_fire(hidden, alphas, zeros, targets, compat=compat)
        assert fired.embeddings.shape == (batch, 0, DIM)
        assert fired.fire_times.shape == (batch, 0)
        assert torch.equal(fired.lengths, zeros)
        assert not fired.quantity.any()
        grads = torch.autograd.grad(fired.embeddings.sum() + fired.quantity.sum(), (hidden, alphas))
        assert not any(grad.any() for grad in grads)


def test_no_weight_with_a_target_weighs_frames_alike() -> None:
    hidden = torch.randn(2, 6, DIM)
    alphas = torch.zeros(2, 6)
    alphas[1] = torch.rand(6)
    alphas.requires_grad_()
    fired = integrate_and_fire(hidden, alphas, torch.tensor([6, 6]), torch.tensor([3, 3]))
    torch.testing.assert_close(fired.embeddings[0], hidden[0].view(3, 2, DIM).mean(1))
    (grad,) = torch.autograd.grad(fired.embeddings.square().sum(), alphas, retain_graph=True)
    assert not grad[0].any()
    assert grad[1].any()
    (grad,) = torch.autograd.grad(fired.quantity.sum(), alphas)
    assert grad.eq(1.0).all()


def test_fire_times_are_frame_and_share() -> None:
    hidden = torch.randn(1, 5, DIM)
    alphas = torch.tensor([[0.25, 0.25, 0.0, 1.0, 0.75]])
    fired = integrate_and_fire(hidden, alphas, torch.tensor([5]))
    torch.testing.assert_close(fired.fire_times, torch.tensor([[3.5, 4 + 2 / 3]]))
    several = integrate_and_fire(hidden[:, :1], torch.tensor([[2.0]]), torch.tensor([1]))
    assert several.fire_times.tolist() == [[0.5, 1.0]]
    tail = integrate_and_fire(hidden, alphas, torch.tensor([5]), tail=0.2)
    assert tail.fire_times[0, 2] == 5.0


@pytest.mark.parametrize(("rest", "tail", "tokens"), [(0.5, 0.5, 2), (0.51, 0.5, 3), (0.51, 0.6, 2)])
def test_the_rest_is_a_token_above_the_tail(rest: float, tail: float, tokens: int) -> None:
    hidden = torch.randn(1, 4, DIM)
    alphas = torch.tensor([[1.0, 1.0, rest / 2, rest / 2]])
    fired = integrate_and_fire(hidden, alphas, torch.tensor([4]), tail=tail)
    assert fired.lengths.tolist() == [tokens]
    if tokens == 3:
        torch.testing.assert_close(fired.embeddings[0, 2], hidden[0, 2:].mean(0))


@pytest.mark.parametrize("share", [3, 7, 10, 13, 49])
@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0])
def test_a_quantity_whole_up_to_rounding_is_whole(share: int, tail: float) -> None:
    alphas = torch.full((1, share * 4), 1.0 / share)
    fired = integrate_and_fire(torch.ones(1, share * 4, 2), alphas, torch.tensor([share * 4]), tail=tail)
    assert fired.lengths.tolist() == [4]
    torch.testing.assert_close(fired.embeddings, torch.ones(1, 4, 2))


def test_layouts_that_are_not_contiguous() -> None:
    hidden, alphas = random_batch([9, 6], 1.0, 0.0, 3, padding=0.0)
    lengths = torch.tensor([9, 6], dtype=torch.int32)
    plain = hidden.clone().requires_grad_()
    turned = hidden.transpose(1, 2).contiguous().requires_grad_()
    first = integrate_and_fire(plain, alphas, lengths).embeddings
    second = integrate_and_fire(turned.transpose(1, 2), alphas, lengths).embeddings
    assert torch.equal(first, second)
    first.sum().backward()
    second.sum().backward()
    assert plain.grad is not None
    assert turned.grad is not None
    assert torch.equal(plain.grad, turned.grad.transpose(1, 2))


def test_negative_weights_count_as_zero() -> None:
    hidden = torch.randn(1, 4, DIM)
    alphas = torch.tensor([[0.8, -3.0, 0.5, 0.7]], requires_grad=True)
    fired = integrate_and_fire(hidden, alphas, torch.tensor([4]))
    expected = integrate_and_fire(hidden, alphas.detach().clamp_min(0.0), torch.tensor([4]))
    assert torch.equal(fired.embeddings, expected.embeddings)
    assert torch.equal(fired.quantity, expected.quantity)
    (grad,) = torch.autograd.grad(fired.embeddings.sum() + fired.quantity.sum(), alphas)
    assert grad[0, 1] == 0.0


def compat_one(
    hidden: list[list[float]], alphas: list[float], target: int | None, tail: float
) -> list[list[float]]:
    """The reference's recurrence in plain Python; the tail is looked at after the last frame."""
    if target is not None:
        total = sum(alphas)
        alphas = [alpha * target / (total + 1e-8) for alpha in alphas]
    weight, state, tokens = 0.0, [0.0] * DIM, []
    for frame, alpha in zip(hidden, alphas):
        if weight + alpha >= 0.99:
            taken = 1.0 - weight
            tokens.append([s + taken * h for s, h in zip(state, frame)])
            weight, state = alpha - taken, [(alpha - taken) * h for h in frame]
        else:
            weight, state = weight + alpha, [s + alpha * h for s, h in zip(state, frame)]
    if target is None and weight > tail:
        tokens.append([s / (weight + 1e-10) for s in state])
    return tokens


@settings(max_examples=40, deadline=None)
@given(cases["lengths"], st.floats(0.05, 2.5), st.booleans(), cases["seed"])
def test_compat_is_the_references_recurrence(
    lengths: list[int], high: float, scaled: bool, seed: int
) -> None:
    hidden, alphas = random_batch(lengths, high, 0.1, seed)
    hidden, alphas = hidden.double(), alphas.double()
    targets = [length // 2 + 1 if length else 0 for length in lengths] if scaled else None
    given_targets = None if targets is None else torch.tensor(targets)
    fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths), given_targets, compat=True)
    for row, length in enumerate(lengths):
        frames, weights = hidden[row, :length].tolist(), alphas[row, :length].tolist()
        expected = compat_one(frames, weights, None if targets is None else targets[row], 0.5)
        assert int(fired.lengths[row]) == len(expected)
        true = torch.tensor(expected, dtype=torch.float64).view(-1, DIM)
        torch.testing.assert_close(fired.embeddings[row, : len(expected)], true, rtol=1e-9, atol=1e-9)
        assert not fired.embeddings[row, len(expected) :].any()


def test_compat_fires_once_a_frame_and_has_gradients() -> None:
    hidden = torch.randn(1, 3, DIM, requires_grad=True)
    alphas = torch.tensor([[2.5, 2.5, 0.1]], requires_grad=True)
    fired = integrate_and_fire(hidden, alphas, torch.tensor([3]), torch.tensor([5]), compat=True)
    assert fired.lengths.tolist() == [3]
    assert integrate_and_fire(hidden, alphas, torch.tensor([3]), torch.tensor([5])).lengths.tolist() == [5]
    grads = torch.autograd.grad(fired.embeddings.sum() + fired.quantity.sum(), (hidden, alphas))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 4)}, "hidden must be"),
        ({"hidden": torch.zeros(2, 4, 3, dtype=torch.int64)}, "hidden must be"),
        ({"alphas": torch.zeros(2, 5)}, "alphas must be"),
        ({"lengths": torch.tensor([4])}, "lengths must be"),
        ({"lengths": torch.tensor([4.0, 2.0])}, "lengths must be integers"),
        ({"lengths": torch.tensor([4, 5])}, r"lengths\[1\] is 5"),
        ({"lengths": torch.tensor([-1, 4])}, r"lengths\[0\] is -1"),
        ({"target_lengths": torch.tensor([1, -2])}, r"target_lengths\[1\] is -2"),
        ({"target_lengths": torch.tensor([1, 2, 3])}, "target_lengths must be"),
        (
            {"lengths": torch.tensor([4, 0]), "target_lengths": torch.tensor([1, 2])},
            "utterance 1 has no valid",
        ),
        ({"alphas": torch.full((2, 4), math.nan)}, "utterance 0 has a weight"),
        ({"alphas": torch.full((2, 4), math.inf)}, "utterance 0 has a weight"),
        ({"tail": 1.5}, "tail must be"),
    ],
)
@pytest.mark.parametrize("compat", [False, True])
def test_arguments_that_do_not_fit(change: dict[str, object], message: str, compat: bool) -> None:
    fits = {"hidden": torch.zeros(2, 4, 3), "alphas": torch.ones(2, 4), "lengths": torch.tensor([4, 4])}
    with pytest.raises(ValueError, match=message):
        integrate_and_fire(**{**fits, **change}, compat=compat)  # type: ignore[arg-type]
