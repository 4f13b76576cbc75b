"""`integrate_and_fire` next to the published recurrence: equal under `compat`, and where the default differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_formulas import Fired, fire
from torch import Tensor

from retort.nn.cif import FiredTokens, integrate_and_fire

DIM = 4


def random_frames(lengths: list[int], high: float, seed: int) -> tuple[Tensor, Tensor]:
    """hidden (B, T, DIM) and alphas (B, T) in [0, `high`), float64; one frame of padding after the longest."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths) + 1
    hidden = torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)
    alphas = torch.rand(shape, generator=generator, dtype=torch.float64) * high
    return hidden, alphas


def assert_equal(fired: FiredTokens, row: int, slow: Fired) -> None:
    count = len(slow.tokens)
    assert int(fired.lengths[row]) == count
    np.testing.assert_allclose(fired.embeddings[row, :count].numpy(), slow.tokens, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fired.fire_times[row, :count].numpy(), slow.times, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(float(fired.quantity[row]), slow.quantity, rtol=1e-12)
    assert not fired.embeddings[row, count:].any()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("high", [0.3, 1.0, 2.5])
def test_compat_is_the_published_training_pass(high: float, seed: int) -> None:
    lengths, targets = [17, 30, 5, 1], [6, 9 + seed, 4, 1]
    hidden, alphas = random_frames(lengths, high, seed)
    fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths), torch.tensor(targets), compat=True)
    for row, (length, target) in enumerate(zip(lengths, targets)):
        slow = fire(hidden[row, :length].numpy(), alphas[row, :length].numpy(), length, target)
        assert_equal(fired, row, slow)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tail", [0.4, 0.5])
def test_compat_is_the_published_evaluation_with_the_tail_seen_at_a_virtual_frame(
    tail: float, seed: int
) -> None:
    lengths = [17, 30, 5, 1]
    hidden, alphas = random_frames(lengths, 0.7, seed)
    fired = integrate_and_fire(hidden, alphas, torch.tensor(lengths), tail=tail, compat=True)
    for row, length in enumerate(lengths):
        slow = fire(hidden[row, : length + 1].numpy(), alphas[row, : length + 1].numpy(), length, tail=tail)
        assert_equal(fired, row, slow)


def test_fire_times_hold_the_published_durations() -> None:
    hidden, alphas = torch.ones(1, 9, DIM, dtype=torch.float64), torch.full((1, 9), 0.45, dtype=torch.float64)
    slow = fire(hidden[0].numpy(), alphas[0].numpy(), 8, tail=0.5)
    assert slow.durations == [2, 2, 2, 2]  # three fires and, at the first padded frame, the tail
    for compat in (False, True):
        fired = integrate_and_fire(hidden, alphas, torch.tensor([8]), tail=0.5, compat=compat)
        assert fired.fire_times[0].long().diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist() == [2] * 4


def test_away_from_the_tolerance_the_default_is_the_published_result() -> None:
    """Weights below one, and no sum inside [k - 0.01, k) but the last: threshold 0.99 decides nothing."""
    compared = 0
    for seed in range(60):
        hidden, alphas = random_frames([24], 0.6, seed)
        target = max(1, round(float(alphas[0, :24].sum())))
        sums = (alphas[0, :24].cumsum(0) * target / alphas[0, :24].sum()).numpy()
        if ((sums % 1.0) >= 0.98).any() or float(alphas[0, :24].max() * target / alphas[0, :24].sum()) > 0.98:
            continue
        slow = fire(hidden[0, :24].numpy(), alphas[0, :24].numpy(), 24, target)
        fired = integrate_and_fire(hidden, alphas, torch.tensor([24]), torch.tensor([target]))
        if len(slow.tokens) == target:
            # 1e-8 in the published divisor, once a token, is all that is left between the two.
            np.testing.assert_allclose(fired.embeddings[0].numpy(), slow.tokens, atol=1e-6)
            compared += 1
    assert compared >= 10


def test_the_tolerance_carries_a_deficit_the_default_waits() -> None:
    alphas = torch.tensor([[0.5, 0.495, 0.505, 0.5]], dtype=torch.float64)
    hidden = torch.eye(4, dtype=torch.float64)[None]
    slow = fire(hidden[0].numpy(), alphas[0].numpy(), 4, target=2)
    # 0.995 is enough to fire: the second frame gives more than it has, and owes it to the next token.
    np.testing.assert_allclose(slow.tokens, [[0.5, 0.5, 0.0, 0.0], [0.0, -0.005, 0.505, 0.5]], atol=1e-7)
    compat = integrate_and_fire(hidden, alphas, torch.tensor([4]), torch.tensor([2]), compat=True)
    assert_equal(compat, 0, slow)
    exact = integrate_and_fire(hidden, alphas, torch.tensor([4]), torch.tensor([2]))
    expected = [[0.5, 0.495, 0.005, 0.0], [0.0, 0.0, 0.5, 0.5]]
    np.testing.assert_allclose(exact.embeddings[0].numpy(), expected, atol=1e-12)


def test_the_published_tail_needs_padding_ours_does_not() -> None:
    hidden, alphas = torch.ones(1, 4, DIM, dtype=torch.float64), torch.full((1, 4), 0.45, dtype=torch.float64)
    alone = fire(hidden[0, :3].numpy(), alphas[0, :3].numpy(), 3, tail=0.3)
    padded = fire(hidden[0].numpy(), alphas[0].numpy(), 3, tail=0.3)
    assert (len(alone.tokens), len(padded.tokens)) == (1, 2)
    for compat in (False, True):
        for frames in (3, 4):
            fired = integrate_and_fire(
                hidden[:, :frames], alphas[:, :frames], torch.tensor([3]), tail=0.3, compat=compat
            )
            assert fired.lengths.tolist() == [2]


def test_one_fire_a_frame_loses_tokens_of_a_short_utterance_ours_gives_every_one() -> None:
    hidden, alphas = random_frames([3], 1.0, 0)
    frames, weights = hidden[0].numpy(), alphas[0].numpy()
    assert len(fire(frames[:3], weights[:3], 3, target=5).tokens) == 3
    # The surplus may fire once more on padding, and what is there enters the token.
    once = fire(frames, weights, 3, target=5)
    again = fire(np.concatenate((frames[:3], frames[3:] + 9.0)), weights, 3, target=5)
    assert len(once.tokens) == len(again.tokens) == 4
    assert np.abs(once.tokens[3] - again.tokens[3]).max() > 1.0
    compat = integrate_and_fire(hidden, alphas, torch.tensor([3]), torch.tensor([5]), compat=True)
    assert compat.lengths.tolist() == [3]
    exact = integrate_and_fire(hidden, alphas, torch.tensor([3]), torch.tensor([5]))
    assert exact.lengths.tolist() == [5]
    scaled = alphas[0, :3] * 5 / alphas[0, :3].sum()
    np.testing.assert_allclose(exact.embeddings[0].sum(0), scaled @ hidden[0, :3], rtol=1e-9)


def test_weights_of_zero_are_no_token_there_and_uniform_here() -> None:
    hidden, alphas = torch.ones(1, 4, DIM, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    assert len(fire(hidden[0].numpy(), alphas[0].numpy(), 4, target=2).tokens) == 0
    fired = integrate_and_fire(hidden, alphas, torch.tensor([4]), torch.tensor([2]))
    assert fired.lengths.tolist() == [2]
    torch.testing.assert_close(fired.embeddings, torch.ones(1, 2, DIM, dtype=torch.float64))


def test_an_all_zero_vector_is_no_token_there_and_one_here() -> None:
    hidden, alphas = torch.zeros(1, 4, DIM, dtype=torch.float64), torch.full((1, 4), 0.5, dtype=torch.float64)
    assert len(fire(hidden[0].numpy(), alphas[0].numpy(), 4, target=2).tokens) == 0
    for compat in (False, True):
        fired = integrate_and_fire(hidden, alphas, torch.tensor([4]), torch.tensor([2]), compat=compat)
        assert fired.lengths.tolist() == [2]


def test_half_precision_sums_miss_tokens_ours_never() -> None:
    generator = np.random.default_rng(0)
    short: dict[type, int] = {np.float16: 0, np.float64: 0}
    lengths, targets = generator.integers(20, 60, 100), generator.integers(4, 18, 100)
    alphas = generator.uniform(0.0, 1.0, (100, 60))
    for precision in short:
        for weights, length, target in zip(alphas, lengths, targets):
            fired = fire(np.ones((length, 1)), weights[:length], length, target, dtype=precision)
            short[precision] += len(fired.tokens) != target
    assert short[np.float64] == 0
    assert short[np.float16] >= 5
    for dtype in (torch.float16, torch.float32):
        ours = integrate_and_fire(
            torch.ones(100, 60, 1, dtype=dtype),
            torch.tensor(alphas, dtype=dtype),
            torch.tensor(lengths),
            torch.tensor(targets),
        )
        assert ours.lengths.tolist() == targets.tolist()
