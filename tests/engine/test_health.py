from __future__ import annotations

import json
import math

import pytest
import torch

from retort.common.errors import UserError
from retort.common.tally import Tally
from retort.config.schema import TrainingConfig
from retort.engine.health import PATIENCE, Health, mean_cosine
from retort.teachers.targets import TeacherTargets

CONFIG = TrainingConfig(warmup_steps=10, precision="bf16")


def targets_of(vectors: torch.Tensor) -> TeacherTargets:
    """A batch of one utterance whose positions all have sources of their own."""
    count = len(vectors)
    sources = torch.stack((torch.arange(count), torch.arange(count) + 1), dim=1)
    return TeacherTargets(vectors[None], torch.ones(1, count, dtype=torch.bool), sources[None])


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_what_is_not_finite_stops(loss: float, norm: float) -> None:
    with pytest.raises(UserError, match="not finite at step 7") as error:
        Health(CONFIG).check_loss(7, loss, norm, {})
    assert "peak_lr" in str(error.value)


def test_the_loss_at_fault_is_named() -> None:
    tallies = {"ce": Tally(torch.tensor(1.0), 2), "ctc": Tally(torch.tensor(math.inf), 2)}
    with pytest.raises(UserError, match="the loss ctc is not finite"):
        Health(CONFIG).check_loss(7, math.inf, 1.0, tallies)


def test_a_finite_loss_and_an_fp16_overflow_pass() -> None:
    Health(CONFIG).check_loss(7, 1.0, 2.0, {})
    Health(TrainingConfig(precision="fp16")).check_loss(7, 1.0, math.inf, {})


@pytest.mark.parametrize("total", [0.01, 8.0])
def test_weights_that_lose_the_number_of_tokens(total: float) -> None:
    health = Health(CONFIG)
    assert health.check_logged(5, {"quantity_total": total}) == []  # still warming up
    assert health.check_logged(20, {"quantity_total": 1.1}) == []
    (text,) = health.check_logged(30, {"quantity_total": total})
    assert f"{total:.2f} a token" in text
    assert "student.quantity_weight" in text
    assert health.check_logged(40, {"quantity_total": total}) == []  # told once


def test_a_silent_ctc_head_is_reported_after_a_while() -> None:
    health = Health(CONFIG)
    reported = [health.check_evaluated(step, {"validation.ctc_cer": 1.0}) for step in range(PATIENCE)]
    assert reported[:-1] == [[]] * (PATIENCE - 1)
    assert any("blanks" in text for text in reported[-1])
    broken = Health(CONFIG)
    for step in range(3 * PATIENCE):
        broken.check_logged(step, {"correct": step / 100})
        assert broken.check_evaluated(step, {"validation.ctc_cer": 1.0 if step % PATIENCE else 0.9}) == []


def test_accuracy_that_stands_still() -> None:
    health = Health(CONFIG)
    for step in range(20):
        health.check_logged(step, {"correct": 0.02 * step})
        assert health.check_evaluated(step, {}) == []
    reported = []
    for step in range(20, 20 + PATIENCE):
        health.check_logged(step, {"correct": 0.38})
        reported += health.check_evaluated(step, {})
    assert len(reported) == 1
    assert "38.0%" in reported[0]


def test_without_a_decoder_accuracy_may_stand_still() -> None:
    health = Health(CONFIG)
    for step in range(3 * PATIENCE):
        health.check_logged(step, {"correct": 0.1})
        assert health.check_evaluated(step, {}, decodes=False) == []


def test_what_logs_no_accuracy_cannot_stand_still() -> None:
    health = Health(CONFIG)
    for step in range(3 * PATIENCE):
        assert health.check_evaluated(step, {}) == []


def test_it_counts_on_after_a_resume() -> None:
    """Of a run that is broken off half-way through its patience the warnings still come, and come once."""
    first = Health(CONFIG)
    first.check_logged(20, {"correct": 0.38, "quantity_total": 8.0})
    first.check_evaluated(20, {"validation.ctc_cer": 1.0})
    reported = []
    for step in range(21, 20 + PATIENCE + 1):
        second = Health(CONFIG)
        second.restore(json.loads(json.dumps(first.state())))
        reported += second.check_logged(step, {"correct": 0.38, "quantity_total": 8.0})
        reported += second.check_evaluated(step, {"validation.ctc_cer": 1.0})
        first = second
    assert len(reported) == 2
    assert "blanks" in reported[0]
    assert "38.0%" in reported[1]


def test_a_teacher_whose_vectors_are_all_alike() -> None:
    torch.manual_seed(0)
    alike = targets_of(torch.ones(6, 8) + 0.01 * torch.randn(6, 8))
    lively = targets_of(torch.randn(6, 8))
    health = Health(CONFIG)
    assert health.check_teachers({("bert", "token"): lively}) == []
    (text,) = health.check_teachers({("bert", "token"): alike})
    assert "teachers.bert.layers" in text
    assert health.check_teachers({("bert", "token"): alike}) == []


def test_the_mean_cosine_is_over_different_sources() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, 8)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    expected = sum(float(unit[i] @ unit[j]) for i in range(4) for j in range(4) if i != j) / 12
    assert mean_cosine(targets_of(vectors)) == pytest.approx(expected, abs=1e-5)
    same = TeacherTargets(
        vectors[None, :1].expand(1, 4, 8), torch.ones(1, 4, dtype=torch.bool), torch.tensor([[[0, 1]] * 4])
    )
    assert mean_cosine(same) == 0.0
