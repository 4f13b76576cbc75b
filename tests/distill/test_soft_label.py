from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retort.distill import soft_label_loss


def batch(shape: tuple[int, ...] = (2, 3), vocabulary: int = 7, k: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64)
    ids = torch.rand(*shape, vocabulary, generator=generator).argsort(-1)[..., :k]
    probs = torch.rand(*shape, k, generator=generator, dtype=torch.float64) * 0.2
    return logits, ids, probs


def slowly(logits: Tensor, ids: Tensor, probs: Tensor, temperature: float) -> Tensor:
    """Position by position, in the words of the formula."""
    result = []
    for row, names, shares in zip(logits.flatten(0, -2), ids.flatten(0, -2), probs.flatten(0, -2)):
        powers = [math.exp(value / temperature) for value in row.tolist()]
        total = 0.0
        for name, share in zip(names.tolist(), (shares / shares.sum()).tolist()):
            if share > 0:
                total += share * math.log(share / (powers[name] / sum(powers)))
        result.append(total * temperature**2)
    return torch.tensor(result, dtype=torch.float64).view(logits.shape[:-1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_equals_the_formula(shape: tuple[int, ...], temperature: float) -> None:
    logits, ids, probs = batch(shape)
    probs.flatten(0, -2)[0, 1] = 0
    loss = soft_label_loss(logits, ids, probs, temperature=temperature, reduction="none")
    expected = slowly(logits, ids, probs, temperature)
    torch.testing.assert_close(loss, expected)
    assert (loss >= 0).all()
    torch.testing.assert_close(soft_label_loss(logits, ids, probs, temperature=temperature), expected.mean())


def test_whole_distribution_equals_torch() -> None:
    logits, _, _ = batch((5,))
    teacher = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = soft_label_loss(
        logits, torch.arange(7).expand(5, 7), (teacher / 2).softmax(-1), temperature=2.0, reduction="none"
    )
    expected = F.kl_div(
        (logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(loss, 4 * expected.sum(-1))


def test_student_equal_to_the_teacher_is_zero() -> None:
    logits, _, _ = batch((5,))
    ids = torch.arange(7).expand(5, 7)
    loss = soft_label_loss(logits, ids, logits.softmax(-1), reduction="none")
    torch.testing.assert_close(loss, torch.zeros(5, dtype=torch.float64))


def test_gradients() -> None:
    logits, ids, probs = batch()
    inputs = (logits.requires_grad_(), probs.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: soft_label_loss(a, ids, b, temperature=2.0, reduction="none"), inputs
    )


def test_zero_probabilities_are_not_read() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
    ids = torch.tensor([[0, 1], [-1, 2]])
    probs = torch.tensor([[0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = soft_label_loss(logits, ids, probs, reduction="none")
    loss.sum().backward()
    expected = torch.tensor([math.log(1 + math.exp(-1)), 0.0])
    torch.testing.assert_close(loss, expected)
    for each in (logits, probs):
        assert each.grad is not None
        assert each.grad.isfinite().all()


def test_a_silent_teacher_and_no_position() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = soft_label_loss(logits, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    empty = torch.zeros(0, 5, requires_grad=True)
    soft_label_loss(empty, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)).backward()
    assert empty.grad is not None


def test_bf16_is_computed_in_float32() -> None:
    logits, ids, probs = batch()
    loss = soft_label_loss(logits.bfloat16(), ids, probs.bfloat16(), reduction="none")
    assert loss.dtype == torch.float32
    expected = soft_label_loss(logits.bfloat16().double(), ids, probs.bfloat16().double(), reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.0},
        {"probs": torch.ones(2, 3)},
        {"logits": torch.ones(3, 5)},
        {"reduction": "batchmean"},
    ],
)
def test_refuses(changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "logits": torch.ones(2, 5),
        "ids": torch.zeros(2, 2, dtype=torch.int64),
        "probs": torch.ones(2, 2),
    }
    with pytest.raises(ValueError, match="must be"):
        soft_label_loss(**(arguments | changed))
