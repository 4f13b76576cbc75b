"""Matrices of cosines against loops over pairs of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill import LOSSES, Row, relational_loss
from retort.distill.registry import row_loss
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets


def cosine(one: list[float], other: list[float]) -> float:
    norms = [max(math.hypot(*each), 1e-6) for each in (one, other)]
    return sum(a * b for a, b in zip(one, other)) / math.prod(norms)


def slow(student: Tensor, teacher: Tensor, owners: list[int]) -> list[float]:
    ours, theirs = student.tolist(), teacher.tolist()
    losses = []
    for i, owner in enumerate(owners):
        others = [j for j in range(len(owners)) if j != i and owners[j] == owner]
        gaps = [(cosine(ours[i], ours[j]) - cosine(theirs[i], theirs[j])) ** 2 for j in others]
        losses.append(sum(gaps) / len(gaps) if gaps else 0.0)
    return losses


@given(owners=st.lists(st.integers(0, 3), max_size=9), seed=st.integers(0, 10**6))
def test_it_is_the_formula(owners: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(len(owners), 4, generator=draw, dtype=torch.float64)
    teacher = torch.randn(len(owners), 6, generator=draw, dtype=torch.float64)
    expected = slow(student, teacher, owners)
    given_owners = torch.tensor(owners, dtype=torch.int64)
    found = relational_loss(student, teacher, given_owners, reduction="none")
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(relational_loss(student, teacher, given_owners)) == pytest.approx(
        sum(expected) / max(len(owners), 1), abs=1e-12
    )
    together = relational_loss(student, teacher, reduction="none")
    assert together.tolist() == pytest.approx(slow(student, teacher, [0] * len(owners)), abs=1e-12)


def test_gradient() -> None:
    student = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    teacher, owners = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda each: relational_loss(each, teacher, owners), student)


def test_lengths_and_rotations_of_the_vectors_do_not_count() -> None:
    teacher = torch.randn(5, 4, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    student = torch.rand(5, 1) * 3 * teacher @ turned
    assert float(relational_loss(student, teacher)) == pytest.approx(0.0, abs=1e-12)
    assert float(relational_loss(student.roll(1, 0), teacher)) > 1e-3


def test_autocast_and_half_precision_compute_in_float32() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relational_loss(student, teacher), relational_loss(student, teacher))
        found = relational_loss(student, teacher)
    assert torch.equal(found, relational_loss(student, teacher))
    assert relational_loss(student.half(), teacher).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3,), (3, 2)), ((3, 2), (3, 2, 1))])
def test_shapes_that_do_not_belong_together(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, D\), \(N, E\)"):
        relational_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    with pytest.raises(ValueError, match="owners"):
        relational_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_a_row_of_it_compares_within_utterances_and_trains_nothing_of_its_own() -> None:
    draw = torch.Generator().manual_seed(0)
    row = Row(RowConfig(tap="acoustic", teacher="bert", loss="relational"), 5, 7)
    assert not list(row.parameters())
    lengths = torch.tensor([4, 3, 1])
    valid = torch.arange(4) < lengths[:, None]
    valid[0, 1] = False
    values = torch.randn(3, 4, 5, generator=draw)
    vectors = torch.randn(3, 4, 7, generator=draw)
    values[~valid], vectors[~valid] = torch.nan, torch.nan
    values.requires_grad_()
    targets = TeacherTargets(vectors, valid, torch.zeros(3, 4, 2, dtype=torch.int64))
    result = row(Tap(values, lengths, "token"), targets)
    owners = valid.nonzero()[:, 0].tolist()
    expected = slow(values[valid], vectors[valid], owners)
    assert float(result.total.detach()) == pytest.approx(sum(expected), rel=1e-5)
    alike = slow(torch.ones(len(owners), 5), vectors[valid], owners)
    assert float(result.metrics["spread"].sum) == pytest.approx(sum(alike), rel=1e-5)
    result.total.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert not values.grad[~valid].any()


def test_a_file_enters_one_loss_under_its_own_name() -> None:
    assert LOSSES["relational"].compares == "unprojected"
    enter = row_loss()
    with pytest.raises(ValueError, match="one per file"):
        enter(LOSSES["relational"].function)
