"""Frames into tokens inside a row: both ways against loops over frames, and what padding must not change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill import Objective, Row, cosine_loss
from retort.distill.pooling import AttentionPool, CifPool, make_pool
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets, empty_targets

DIM, TEACHER_DIM = 8, 5
LENGTHS, COUNTS = [9, 6, 4, 3], [4, 2, 0, 1]
POOLS: dict[str, Callable[[], nn.Module]] = {
    "cif": lambda: CifPool(DIM),
    "attention": lambda: AttentionPool(DIM, 2),
}


def make_pool_of(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return POOLS[kind]().double()


def make_frames(filler: float = 0.0) -> Tensor:
    frames = torch.randn(
        len(LENGTHS), max(LENGTHS), DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    frames[torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]] = filler
    return frames


def slow_cif(pool: CifPool, frames: Tensor, count: int) -> tuple[list[Tensor], float]:
    """Frame by frame, with the estimator written out."""
    convolution, linear = pool.weights.convolution, pool.weights.linear
    alphas = []
    for t in range(len(frames)):
        mixed = convolution.bias.clone()  # type: ignore[union-attr]
        for tap in range(3):
            if 0 <= t + tap - 1 < len(frames):
                mixed = mixed + convolution.weight[:, :, tap] @ frames[t + tap - 1]
        alphas.append(1.0 / (1.0 + math.exp(-float(linear(mixed)))))
    total, place, vectors = sum(alphas), 0.0, [torch.zeros(DIM, dtype=torch.float64) for _ in range(count)]
    for alpha, frame in zip(alphas, frames):
        end = place + alpha * count / total
        for token in range(count):
            share = min(end, token + 1) - max(place, token)
            if share > 0:
                vectors[token] += share * frame
        place = end
    return vectors, abs(total - count) if count else 0.0


def slow_attention(pool: AttentionPool, frames: Tensor, count: int) -> list[Tensor]:
    def place(position: int) -> Tensor:
        angles = [position / 10000 ** (2 * pair / DIM) for pair in range(DIM // 2)]
        waves = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        return torch.tensor(waves, dtype=torch.float64)

    layer, size = pool.attention, DIM // pool.attention.heads
    keys = [layer.key(frame + place(t)) for t, frame in enumerate(frames)]
    values = [layer.value(frame) for frame in frames]
    vectors = []
    for token in range(count):
        query, parts = layer.query(place(token)), []
        for head in range(layer.heads):
            own = slice(head * size, (head + 1) * size)
            weights = [math.exp(float(query[own] @ key[own]) / math.sqrt(size)) for key in keys]
            parts.append(sum(w * value[own] for w, value in zip(weights, values)) / sum(weights))
        vectors.append(layer.output(torch.cat(parts)))
    return vectors


@torch.no_grad()
@pytest.mark.parametrize("kind", POOLS)
def test_it_is_the_formula_in_any_batch(kind: str) -> None:
    pool, frames = make_pool_of(kind), make_frames(torch.nan)
    vectors, distances = pool(frames, torch.tensor(LENGTHS), torch.tensor(COUNTS))
    assert vectors.shape == (4, 4, DIM)
    assert vectors.isfinite().all()
    for row, (length, count) in enumerate(zip(LENGTHS, COUNTS)):
        if isinstance(pool, CifPool):
            expected, distance = slow_cif(pool, frames[row, :length], count)
            assert float(distances[row]) == pytest.approx(distance, abs=1e-6)
        else:
            assert isinstance(pool, AttentionPool)
            assert distances is None
            expected = slow_attention(pool, frames[row, :length], count)
        for token, each in enumerate(expected):
            torch.testing.assert_close(vectors[row, token], each, atol=1e-5, rtol=1e-5)
        one = torch.tensor([count])
        alone, _ = pool(frames[row : row + 1, :length], torch.tensor([length]), one)
        torch.testing.assert_close(vectors[row, :count], alone[0, :count], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", POOLS)
def test_gradient(kind: str) -> None:
    pool, frames = make_pool_of(kind), make_frames().requires_grad_()
    weights = [each for each in pool.parameters()]
    shares = torch.randn(4, 4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shares[torch.arange(4) >= torch.tensor(COUNTS)[:, None]] = 0.0

    def total(values: Tensor, *_: Tensor) -> Tensor:
        vectors, distances = pool(values, torch.tensor(LENGTHS), torch.tensor(COUNTS))
        return (vectors * shares).sum() + (0.0 if distances is None else distances.sum())

    assert torch.autograd.gradcheck(total, (frames, *weights))
    total(frames).backward()
    assert frames.grad is not None
    assert not frames.grad[torch.arange(9) >= torch.tensor(LENGTHS)[:, None]].any()


def config(**changed: Any) -> RowConfig:
    return RowConfig(**({"tap": "frames.1", "teacher": "bert", "loss": "cosine", "pool": "cif"} | changed))


def make_batch(padding: int = 0, signal_padding: int = 0) -> tuple[Tap, TeacherTargets]:
    """The teacher says nothing of the third utterance, and nothing of the first one's second token."""
    frames = make_frames(torch.nan).float()
    frames = torch.cat((frames, torch.full((4, padding, DIM), torch.nan)), 1)
    size = max(COUNTS) + signal_padding
    valid = torch.arange(size) < torch.tensor(COUNTS)[:, None]
    valid[0, 1] = False
    vectors = torch.randn(4, max(COUNTS), TEACHER_DIM, generator=torch.Generator().manual_seed(5))
    vectors = torch.cat((vectors, torch.full((4, signal_padding, TEACHER_DIM), torch.nan)), 1)
    vectors[~valid] = torch.nan
    place = torch.arange(valid.numel()).view(valid.shape)
    sources = torch.stack((place, place + 1), -1) * valid[..., None]
    return Tap(frames.requires_grad_(), torch.tensor(LENGTHS), "frame"), TeacherTargets(vectors, valid, sources)


def make_row(**changed: Any) -> Row:
    torch.manual_seed(0)
    return Row(config(**changed), DIM, TEACHER_DIM)


@pytest.mark.parametrize("average", ["token", "utterance"])
@pytest.mark.parametrize("pool", ["cif", "attention"])
def test_a_row_takes_the_loss_of_what_was_pooled(pool: str, average: str) -> None:
    row, (tap, targets) = make_row(pool=pool, average=average, quantity_weight=0.3, pool_heads=2), make_batch()
    assert row.pool is not None
    with torch.no_grad():
        vectors, distances = row.pool(tap.values, tap.lengths, torch.tensor(COUNTS))
        expected = 0.0
        for index, count in enumerate(COUNTS):
            recognised = targets.valid[index, :count]
            student = row.projection(vectors[index, :count][recognised])
            own = float(cosine_loss(student, targets.vectors[index, :count][recognised], reduction="sum"))
            own += 0.3 * float(distances[index]) if distances is not None else 0.0
            expected += own if average == "token" or not count else own / int(recognised.sum())
    result = row(tap, targets)
    assert float(result.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert result.count == (6 if average == "token" else 3)
    if distances is not None:
        tally = result.metrics["quantity"]
        assert (float(tally.sum), tally.count) == (pytest.approx(float(distances.sum())), 7)
    else:
        assert "quantity" not in result.metrics


@pytest.mark.parametrize("loss", ["regression", "cosine", "contrastive", "relational"])
@pytest.mark.parametrize("pool", ["cif", "attention"])
def test_padding_changes_nothing_and_every_weight_learns(pool: str, loss: str) -> None:
    totals = []
    for padding, signal_padding in ((0, 0), (3, 2)):
        row, (tap, targets) = make_row(pool=pool, loss=loss), make_batch(padding, signal_padding)
        tokens = torch.arange(4 * 6).view(4, 6)
        torch.manual_seed(7)
        result = row(tap, targets, tokens)
        result.total.backward()
        totals.append(result.total.detach())
        assert tap.values.grad is not None
        assert tap.values.grad.isfinite().all()
        reached = tap.values.grad.abs().sum(-1) > 0
        # A single token has no relations; its weights still have a sum.
        least = 2 if (pool, loss) == ("attention", "relational") else 1
        assert torch.equal(reached.any(1), torch.tensor(COUNTS) >= least)
        assert not (reached & (torch.arange(9 + padding) >= tap.lengths[:, None])).any()
        for each in row.parameters():
            assert each.grad is not None
            assert each.grad.isfinite().all()
    torch.testing.assert_close(totals[0], totals[1])


@pytest.mark.parametrize("pool", ["cif", "attention"])
def test_a_batch_of_which_nothing_is_predicted_costs_nothing(pool: str) -> None:
    row, (tap, _) = make_row(pool=pool), make_batch()
    result = row(tap, empty_targets(4, TEACHER_DIM))
    result.total.backward()
    assert (result.total.item(), result.count) == (0, 0)
    # Every process must have a gradient for every weight.
    assert all(each.grad is not None and not each.grad.any() for each in row.parameters())


def test_the_weights_of_a_pool_learn_the_number_of_tokens() -> None:
    row, (tap, targets) = make_row(), make_batch()
    optimizer = torch.optim.Adam(row.parameters(), lr=0.03)
    history = []
    for _ in range(60):
        optimizer.zero_grad()
        result = row(Tap(tap.values.detach(), tap.lengths, "frame"), targets)
        result.total.backward()
        optimizer.step()
        history.append(float(result.metrics["quantity"].sum))
    assert history[-1] < 0.5 * history[0]
    assert float(result.total.detach()) < 4.0


def test_an_objective_asks_for_tokens_and_is_given_frames() -> None:
    objective = Objective([config(same_token_negatives=False)], {"frames.1": DIM}, {"bert": TEACHER_DIM})
    assert objective.needs == {("bert", "token")}
    tap, targets = make_batch()
    result = objective({"frames.1": tap}, {("bert", "token"): targets}, torch.zeros(4, 4, dtype=torch.int64))
    assert set(result.metrics) == {"frames.1.cosine", "frames.1.cosine.quantity"}
    with pytest.raises(ValueError, match="declared as frame"):
        objective({"frames.1": Tap(tap.values, tap.lengths, "token")}, {("bert", "token"): targets})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tap": "acoustic"}, r"distill\[0\]: .*cosine on 'acoustic'.*are tokens.*frames.N"),
        ({"loss": "soft_label"}, "only with losses of vectors"),
        ({"pool": "attention", "pool_heads": 3}, "pool_heads is 3, tap 'frames.1' has 8 dimensions"),
        ({"pool": "mean"}, "unknown pool 'mean'.*none, cif or attention"),
    ],
)
def test_what_cannot_be_pooled_is_reported_in_one_line(changed: dict[str, Any], message: str) -> None:
    units: Any = {"acoustic": "token", "frames.1": "frame"}
    with pytest.raises(UserError, match=message) as caught:
        Objective([config(**changed)], {"frames.1": DIM, "acoustic": DIM}, {"bert": TEACHER_DIM}, units)
    assert "\n" not in str(caught.value)


def test_no_pool_is_none() -> None:
    assert make_pool(config(pool="none"), DIM) is None
