"""What is read from a store against what the teacher itself says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retort.config.schema import RowConfig
from retort.distill import Objective
from retort.students.student import Tap
from retort.teachers import (
    StoredTeacher,
    Teacher,
    fill,
    open_teacher,
    open_teacher_model,
    token_targets,
    utterance_targets,
)
from retort.teachers.masked_lm import MaskedLMConfig
from retort.text.tokenizers import Piece

SENTENCES = (
    "hello world",
    "unfair games",
    "it's a world !",
    "我爱python编程",
    "hello hello hello hello hello",
)


@pytest.fixture
def both(uncased: Path, tmp_path: Path) -> tuple[Teacher, Teacher]:
    online = MaskedLMConfig(model=str(uncased), layers=[1, -1], case="lower")
    disk = MaskedLMConfig(model=str(uncased), layers=[1, -1], case="lower", storage="disk")
    store = open_teacher(disk, stores=tmp_path)
    assert isinstance(store, StoredTeacher)
    fill(store, open_teacher_model(disk), SENTENCES)
    return open_teacher(online), store


def test_the_readings_differ_by_float16_alone(both: tuple[Teacher, Teacher]) -> None:
    for online, stored in zip(*(each.read(SENTENCES) for each in both), strict=True):
        assert stored.spans == online.spans
        torch.testing.assert_close(stored.vectors.float(), online.vectors, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "regression", "cosine"])
def test_the_losses_and_gradients_are_the_same(both: tuple[Teacher, Teacher], loss: str) -> None:
    results = [objective_of(teacher, loss) for teacher in both]
    (online, online_gradient), (stored, stored_gradient) = results
    assert float(online) > 0
    torch.testing.assert_close(stored, online, rtol=2e-3, atol=1e-4)
    difference = (stored_gradient - online_gradient).norm() / online_gradient.norm()
    assert float(difference) < 0.01


def objective_of(teacher: Teacher, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the rows over a batch of the sentences, student pieces being characters."""
    pieces = [
        [Piece(5 + ord(letter) % 20, place, place + 1) for place, letter in enumerate(text)]
        for text in SENTENCES
    ]
    lengths = torch.tensor([len(each) + 1 for each in pieces])
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(len(pieces), int(lengths.max()), 8, generator=generator, requires_grad=True)
    tokens = torch.randint(4, 30, values.shape[:2], generator=generator)
    torch.manual_seed(0)
    rows = [RowConfig(tap=tap, teacher="bert", loss=loss) for tap in ("acoustic", "utterance")]
    objective = Objective(rows, {"acoustic": 8, "utterance": 8}, {"bert": teacher.dim})
    outputs = teacher.read(SENTENCES)
    signals = {
        ("bert", "token"): token_targets(outputs, SENTENCES, pieces),
        ("bert", "utterance"): utterance_targets(outputs, SENTENCES),
    }
    taps = {
        "acoustic": Tap(values, lengths, "token"),
        "utterance": Tap(values[:, :1], torch.ones_like(lengths), "utterance"),
    }
    torch.manual_seed(1)
    result = objective(taps, signals, tokens, 0)
    total = result.token_sum + result.utterance_sum
    total.backward()
    assert values.grad is not None
    return total.detach(), values.grad
