from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from retort.config.schema import RowConfig
from retort.distill import cosine_loss
from retort.distill.losses.cosine import cosine_row
from retort.distill.positions import Targets


def test_known_angles() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0]] * 5)
    expected = torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5, 1.0])
    torch.testing.assert_close(cosine_loss(student, teacher, reduction="none"), expected)
    torch.testing.assert_close(cosine_loss(student, teacher), expected.mean())
    targets = Targets(teacher, torch.zeros(5, 2, dtype=torch.int64), None)
    row = cosine_row(student, targets, RowConfig(tap="acoustic", teacher="bert", loss="cosine"))
    torch.testing.assert_close(row.values, expected)


def test_equals_torch() -> None:
    student, teacher = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = 1 - F.cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(cosine_loss(student, teacher, reduction="none"), expected)


def test_gradients() -> None:
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: cosine_loss(a, b, reduction="none"), inputs)


def test_zero_vectors_and_no_vectors() -> None:
    for size in (0, 2):
        student = torch.zeros(size, 3, requires_grad=True)
        loss = cosine_loss(student, torch.ones(size, 3))
        loss.backward()
        assert loss.item() == (1.0 if size else 0.0)
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_bf16_is_computed_in_float32() -> None:
    student, teacher = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = cosine_loss(student, teacher, reduction="none")
    assert loss.dtype == torch.float32
    expected = cosine_loss(student.double(), teacher.double(), reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="are not both"):
        cosine_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
