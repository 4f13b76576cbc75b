from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill import regression_loss
from retort.distill.losses.regression import regression_row
from retort.distill.positions import Targets


def pair(size: int = 4, dim: int = 3) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(
        2, size, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return student, teacher


def slowly(student: Tensor, teacher: Tensor) -> list[float]:
    return [sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(student.tolist(), teacher.tolist())]


def test_is_the_squared_error_of_every_position() -> None:
    student, teacher = pair()
    expected = torch.tensor(slowly(student, teacher), dtype=torch.float64)
    torch.testing.assert_close(regression_loss(student, teacher, reduction="none"), expected)
    torch.testing.assert_close(
        regression_loss(student, teacher, reduce="mean", reduction="none"), expected / 3
    )
    torch.testing.assert_close(regression_loss(student, teacher), expected.mean())
    torch.testing.assert_close(regression_loss(student, teacher, reduction="sum"), expected.sum())


def test_gradients() -> None:
    student, teacher = (each.requires_grad_() for each in pair())
    assert torch.autograd.gradcheck(lambda a, b: regression_loss(a, b, reduction="none"), (student, teacher))


def test_no_position_is_zero_with_a_gradient() -> None:
    student = torch.ones(0, 3, requires_grad=True)
    loss = regression_loss(student, torch.ones(0, 3))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_bf16_is_computed_in_float32() -> None:
    student, teacher = (each.bfloat16() for each in pair(5, 64))
    loss = regression_loss(student, teacher, reduction="none")
    assert loss.dtype == torch.float32
    expected = regression_loss(student.double(), teacher.double(), reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_the_row_reads_reduce() -> None:
    student, teacher = pair()
    targets = Targets(teacher, torch.zeros(4, 2, dtype=torch.int64), None)
    row = RowConfig(tap="linguistic", teacher="bert", loss="regression")
    summed = regression_row(student, targets, row).values
    row.reduce = "mean"
    torch.testing.assert_close(regression_row(student, targets, row).values * 3, summed)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_the_power_is_what_zeros_lose(reduce: str) -> None:
    student, teacher = torch.randn(7, 3), torch.randn(7, 3, dtype=torch.float16)
    row = RowConfig(tap="linguistic", teacher="bert", loss="regression", reduce=reduce)
    found = regression_row(student, Targets(teacher, None, None), row).marks["power"]
    expected = [sum(float(x) ** 2 for x in vector) / (3 if reduce == "mean" else 1) for vector in teacher]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    "changed", [{"reduce": "none"}, {"reduction": "batchmean"}, {"teacher": torch.ones(4, 2)}]
)
def test_refuses(changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"student": torch.ones(4, 3), "teacher": torch.ones(4, 3)}
    with pytest.raises(ValueError, match=r"must be|are not both"):
        regression_loss(**(arguments | changed))
