"""Optimal transport between frames and vectors, against Sinkhorn's algorithm in loops over one utterance at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill import Row, transport_loss
from retort.distill.losses.transport import sinkhorn
from retort.nn.masks import valid_mask
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets

LENGTHS, TEXTS, DIM = [9, 4, 6], [3, 1, 5], 4


def batch(padding: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames and vectors whose padding is NaN."""
    generator = torch.Generator().manual_seed(0)
    sizes = max(LENGTHS) + padding, max(TEXTS) + padding
    frames, vectors = (torch.full((3, size, DIM), torch.nan, dtype=dtype) for size in sizes)
    for row, (frame_count, count) in enumerate(zip(LENGTHS, TEXTS)):
        frames[row, :frame_count] = torch.randn(frame_count, DIM, generator=generator).to(dtype)
        vectors[row, :count] = torch.randn(count, DIM, generator=generator).to(dtype)
    return frames, torch.tensor(LENGTHS), vectors, valid_mask(torch.tensor(TEXTS), sizes[1])


def slow_coupling(cost: list[list[float]], entropy: float, iterations: int = 20) -> list[list[float]]:
    """Scaling of rows and columns in turn, not in log space."""
    rows, columns = len(cost), len(cost[0])
    kernel = [[math.exp(-each / entropy) for each in row] for row in cost]
    a, b = [1.0] * rows, [1.0] * columns
    for _ in range(iterations):
        a = [1 / rows / sum(kernel[i][j] * b[j] for j in range(columns)) for i in range(rows)]
        b = [1 / columns / sum(kernel[i][j] * a[i] for i in range(rows)) for j in range(columns)]
    return [[a[i] * kernel[i][j] * b[j] for j in range(columns)] for i in range(rows)]


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(x * y for x, y in zip(first, second))
    return product / math.sqrt(sum(x * x for x in first) * sum(y * y for y in second))


def slow_loss(
    frames: list[list[float]], vectors: list[list[float]], entropy: float
) -> tuple[list[float], float]:
    cost = [[1 - cosine(frame, vector) for vector in vectors] for frame in frames]
    coupling = slow_coupling(cost, entropy)
    losses = []
    for j, vector in enumerate(vectors):
        coupled = [
            sum(coupling[i][j] * frame[d] for i, frame in enumerate(frames)) for d in range(len(vector))
        ]
        losses.append(1 - cosine(coupled, vector))
    total = sum(coupling[i][j] * cost[i][j] for i in range(len(frames)) for j in range(len(vectors)))
    return losses, total


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("entropy", [0.05, 0.1, 1.0])
def test_losses_and_costs_are_those_of_the_loops(padding: int, entropy: float) -> None:
    frames, lengths, vectors, valid = batch(padding)
    losses, costs = transport_loss(frames, lengths, vectors, valid, entropy=entropy, reduction="none")
    expected, totals = [], []
    for row, (frame_count, count) in enumerate(zip(LENGTHS, TEXTS)):
        own, total = slow_loss(frames[row, :frame_count].tolist(), vectors[row, :count].tolist(), entropy)
        expected += own
        totals.append(total)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(costs, torch.tensor(totals, dtype=torch.float64))


def test_the_coupling_has_uniform_marginals_and_little_entropy_finds_the_cheapest() -> None:
    cost = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.2, 1.0], [0.6, 1.0, 0.1]]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    coupling = sinkhorn(cost, everything, everything, 0.02, 200)[0]
    torch.testing.assert_close(coupling, torch.eye(3) / 3, atol=1e-4, rtol=0)
    loose = sinkhorn(torch.rand(1, 3, 3), everything, everything, 0.3, 200)[0]
    torch.testing.assert_close(loose.sum(0), torch.full((3,), 1 / 3))
    torch.testing.assert_close(loose.sum(1), torch.full((3,), 1 / 3))


def test_gradient() -> None:
    frames, lengths, vectors, valid = batch()
    frames = frames.nan_to_num(0.5)
    vectors = vectors.nan_to_num(0.5)

    def loss(each: Tensor) -> Tensor:
        return transport_loss(each, lengths, vectors, valid, entropy=0.2, reduction="none")[0]

    torch.autograd.gradcheck(loss, frames.requires_grad_())


def test_padding_gets_no_gradient_and_spreads_no_nan() -> None:
    frames, lengths, vectors, valid = batch(2, torch.float32)
    frames.requires_grad_()
    transport_loss(frames, lengths, vectors, valid, entropy=0.05)[0].backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert not frames.grad[~valid_mask(lengths, frames.shape[1])].any()


def test_wrong_shapes_and_entropy_are_errors() -> None:
    frames, lengths, vectors, valid = batch()
    with pytest.raises(ValueError, match="must be"):
        transport_loss(frames, lengths, vectors[:2], valid)
    with pytest.raises(ValueError, match="entropy"):
        transport_loss(frames, lengths, vectors, valid, entropy=0.0)


class TestRow:
    def row(self, **changed: Any) -> Row:
        torch.manual_seed(0)
        settings = {"tap": "encoder", "teacher": "bert", "loss": "transport"} | changed
        return Row(RowConfig(**settings), DIM, DIM, None, 9)

    def given(self, padding: int = 0) -> tuple[Tap, TeacherTargets]:
        frames, lengths, vectors, valid = batch(padding, torch.float32)
        place = torch.arange(valid.numel()).view(valid.shape)
        sources = torch.stack([place, place + 1], -1) * valid[..., None]
        return Tap(frames, lengths, "frame"), TeacherTargets(vectors, valid, sources)

    def test_a_batch_is_its_utterances(self) -> None:
        row = self.row()
        tap, targets = self.given(2)
        whole = row(tap, targets)
        alone = [
            row(
                Tap(tap.values[each : each + 1, :length], tap.lengths[each : each + 1], "frame"),
                TeacherTargets(
                    targets.vectors[each : each + 1, :count],
                    targets.valid[each : each + 1, :count],
                    targets.sources[each : each + 1, :count],
                ),
            )
            for each, (length, count) in enumerate(zip(LENGTHS, TEXTS))
        ]
        assert whole.count == sum(TEXTS)
        torch.testing.assert_close(whole.total, sum(each.total for each in alone))
        whole.total.backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in row.parameters())

    def test_more_frames_than_text_and_text_than_frames(self) -> None:
        tap, targets = self.given()
        short = Tap(tap.values[:, :2].nan_to_num(0.3), torch.tensor([2, 0, 1]), "frame")
        result = self.row()(short, targets)
        assert result.total.isfinite()
        nothing = TeacherTargets(targets.vectors, torch.zeros_like(targets.valid), targets.sources)
        assert self.row()(tap, nothing).total == 0

    def test_controls_and_words(self) -> None:
        tap, targets = self.given()
        assert self.row(valid="word_end")(tap, targets).count == sum(TEXTS) - 3
        shuffled = self.row(control="shuffled")(tap, targets)
        assert shuffled.count == sum(TEXTS)
        assert not torch.allclose(shuffled.total, self.row()(tap, targets).total)
        static = self.row(control="static")
        static.static.copy_(torch.randn(9, DIM))
        tokens = torch.full(targets.valid.shape, 4)
        expected = TeacherTargets(static.static[tokens], targets.valid, targets.sources)
        torch.testing.assert_close(static(tap, targets, tokens).total, self.row()(tap, expected).total)
