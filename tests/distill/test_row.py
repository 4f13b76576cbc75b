"""A row on batches whose padding holds rubbish, against its loss on the positions picked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.distill import LOSS_NAMES
from retort.config.schema import RowConfig
from retort.distill import LOSSES, Row, contrastive_hits, contrastive_logits, cosine_loss, regression_loss
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets

LENGTHS = [4, 1, 6, 3]
TAP_DIM, TEACHER_DIM = 5, 7
VECTOR_LOSSES = ["contrastive", "regression", "cosine"]
"""`soft_label` has tests of its own."""


def config(**changed: Any) -> RowConfig:
    return RowConfig(**({"tap": "acoustic", "teacher": "bert", "loss": "regression"} | changed))


def make_row(**changed: Any) -> Row:
    torch.manual_seed(0)
    return Row(config(**changed), TAP_DIM, TEACHER_DIM)


def make_batch(tap_padding: int = 0, signal_padding: int = 0) -> tuple[Tap, TeacherTargets, Tensor]:
    """Four utterances; the teacher is silent on position 1 of the first and of all of the last."""
    generator = torch.Generator().manual_seed(1)
    batch, longest = len(LENGTHS), max(LENGTHS)
    lengths = torch.tensor(LENGTHS)
    padded = torch.arange(longest) >= lengths[:, None]
    values = torch.randn(batch, longest, TAP_DIM, generator=generator)
    vectors = torch.randn(batch, longest, TEACHER_DIM, generator=generator)
    values[padded], vectors[padded] = torch.nan, torch.nan
    values = torch.cat([values, torch.full((batch, tap_padding, TAP_DIM), torch.nan)], 1).requires_grad_()
    vectors = torch.cat([vectors, torch.full((batch, signal_padding, TEACHER_DIM), torch.nan)], 1)
    valid = torch.cat([~padded, torch.zeros(batch, signal_padding, dtype=torch.bool)], 1)
    valid[0, 1] = valid[3] = False
    place = torch.arange(valid.numel()).view(valid.shape)
    sources = torch.stack([place, place + 1], -1) * valid[..., None]
    tokens = torch.randint(3, 6, (batch, longest), generator=generator)
    return Tap(values, lengths, "token"), TeacherTargets(vectors, valid, sources), tokens


def picked(row: Row, tap: Tap, teacher_targets: TeacherTargets) -> tuple[list[Tensor], list[Tensor]]:
    """For each utterance, projected student and teacher vectors of its valid positions."""
    students, teachers = [], []
    for index, length in enumerate(tap.lengths.tolist()):
        places = [place for place in range(length) if teacher_targets.valid[index, place]]
        students.append(row.projection(tap.values[index, places]))
        teachers.append(teacher_targets.vectors[index, places])
    return students, teachers


def test_the_registry_and_the_recipe_agree() -> None:
    assert set(LOSSES) == set(LOSS_NAMES)
    with pytest.raises(UserError, match=r"loss is 'hinge'.*contrastive, cosine, .*regression, relational"):
        make_row(loss="hinge")


def test_projection_has_the_published_size() -> None:
    row = Row(config(), 256, 768)
    assert sum(each.numel() for each in row.parameters()) == 256 * 768 + 768
    # Two of them are what CIF-HKD trains above CIF.
    assert 2 * (256 * 768 + 768) == 47_603_339 - 47_208_587


@pytest.mark.parametrize(("tap_padding", "signal_padding"), [(0, 0), (2, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("loss", ["regression", "cosine"])
def test_sums_over_the_valid_positions(loss: str, tap_padding: int, signal_padding: int) -> None:
    row = make_row(loss=loss)
    tap, teacher_targets, tokens = make_batch(tap_padding, signal_padding)
    result = row(tap, teacher_targets, tokens)
    function = {"regression": regression_loss, "cosine": cosine_loss}[loss]
    students, teachers = picked(row, tap, teacher_targets)
    expected = function(torch.cat(students), torch.cat(teachers), reduction="sum")
    assert (result.count, result.normaliser) == (10, "tokens")
    assert {name: tally.count for name, tally in result.metrics.items()} == (
        {"power": 10} if loss == "regression" else {}
    )
    torch.testing.assert_close(result.total, expected)


def test_means_of_utterances_are_summed() -> None:
    row = make_row(average="utterance")
    tap, teacher_targets, _ = make_batch()
    result = row(tap, teacher_targets)
    means = [regression_loss(*pair) for pair in zip(*picked(row, tap, teacher_targets)) if len(pair[0])]
    assert (result.count, result.normaliser) == (3, "utterances")
    torch.testing.assert_close(result.total, torch.stack(means).sum())


@pytest.mark.parametrize("average", ["token", "utterance"])
@pytest.mark.parametrize("loss", VECTOR_LOSSES)
def test_padding_gets_no_gradient_and_spreads_no_nan(loss: str, average: str) -> None:
    row = make_row(loss=loss, average=average)
    tap, teacher_targets, tokens = make_batch(1, 1)
    row(tap, teacher_targets, tokens).total.backward()
    assert tap.values.grad is not None
    assert tap.values.grad.isfinite().all()
    touched = tap.values.grad.abs().sum(-1) > 0
    assert torch.equal(touched, teacher_targets.valid[:, : touched.shape[1]])
    for parameter in row.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("loss", VECTOR_LOSSES)
@pytest.mark.parametrize("average", ["token", "utterance"])
def test_a_batch_without_a_valid_position_is_zero(loss: str, average: str) -> None:
    row = make_row(loss=loss, average=average)
    tap, teacher_targets, tokens = make_batch()
    teacher_targets = replace(teacher_targets, valid=torch.zeros_like(teacher_targets.valid))
    result = row(tap, teacher_targets, tokens)
    result.total.backward()
    assert (result.total.item(), result.count) == (0, 0)
    # Every rank must produce a gradient for every parameter, or distributed training waits forever.
    assert all(each.grad is not None and (each.grad == 0).all() for each in row.parameters())


def test_contrastive_negatives_come_from_the_whole_batch_and_accuracy_counts_hits() -> None:
    row = make_row(loss="contrastive", temperature=0.1)
    tap, teacher_targets, tokens = make_batch()
    torch.manual_seed(5)
    result = row(tap, teacher_targets, tokens)
    torch.manual_seed(5)
    student, teacher = (torch.cat(each) for each in picked(row, tap, teacher_targets))
    logits = contrastive_logits(student, teacher, temperature=0.1)
    torch.testing.assert_close(result.total, (logits.logsumexp(1) - logits.diagonal()).sum())
    assert result.metrics["accuracy"].count == result.count == 10
    assert result.metrics["accuracy"].sum == contrastive_hits(logits).sum()
    assert not result.metrics["accuracy"].sum.requires_grad


def test_contrastive_reads_sources_and_tokens_of_the_same_positions() -> None:
    tap, teacher_targets, tokens = make_batch()
    shared = replace(teacher_targets, sources=torch.tensor([3, 5]).expand_as(teacher_targets.sources))
    assert make_row(loss="contrastive")(tap, shared).total == 0
    assert make_row(loss="contrastive")(tap, teacher_targets).total > 0
    row = make_row(loss="contrastive", same_token_negatives=False)
    # Outside the valid positions ids differ: they must not be read.
    places = torch.arange(teacher_targets.valid.numel()).view(teacher_targets.valid.shape)
    alike = torch.where(teacher_targets.valid, 9, places)
    assert row(tap, teacher_targets, alike).total == 0
    assert row(tap, teacher_targets, tokens).total > 0
    with pytest.raises(ValueError, match="same_token_negatives"):
        row(tap, teacher_targets)
    with pytest.raises(ValueError, match="tokens"):
        row(tap, teacher_targets, tokens[:, :2])


def test_one_vector_an_utterance() -> None:
    row = make_row()
    values = torch.randn(3, 1, TAP_DIM, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 1, dtype=torch.bool)
    teacher_targets = TeacherTargets(torch.zeros(3, 1, TEACHER_DIM), valid, torch.zeros(3, 1, 2, dtype=torch.int64))
    result = row(Tap(values, torch.ones(3, dtype=torch.int64), "utterance"), teacher_targets, torch.zeros(3, 0))
    torch.testing.assert_close(result.total, row.projection(values).square().sum())
    assert result.count == 3


@pytest.mark.parametrize("shift", [-1, 1, 20])
def test_a_tap_of_another_length_is_an_error_that_names_the_utterance(shift: int) -> None:
    tap, teacher_targets, _ = make_batch(4, 0)
    lengths = tap.lengths.clone()
    lengths[2] += shift
    with pytest.raises(
        ValueError, match=f"utterance 2 of the batch has {6 + shift} positions.* 6 in the targets"
    ):
        make_row()(replace(tap, lengths=lengths), teacher_targets)


def test_another_number_of_utterances_is_an_error() -> None:
    tap, teacher_targets, _ = make_batch()
    with pytest.raises(ValueError, match="the tap has 3 utterances and the targets 4"):
        make_row()(Tap(tap.values[:3], tap.lengths[:3], "token"), teacher_targets)


def test_autocast_does_not_reach_the_row() -> None:
    row = make_row()
    tap, teacher_targets, _ = make_batch()
    expected = row(tap, teacher_targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert row(tap, teacher_targets).total == expected
        half = row(replace(tap, values=tap.values.bfloat16()), teacher_targets).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0)


def test_weight_warms_up_linearly() -> None:
    row = make_row(weight=0.5, warmup_steps=4)
    assert [row.weight_at(step) for step in (0, 1, 4, 9)] == [0.0, 0.125, 0.5, 0.5]
    assert make_row(weight=0.5).weight_at(0) == 0.5


@pytest.mark.parametrize("loss", ["contrastive", "regression", "cosine"])
def test_a_row_can_be_learned(loss: str) -> None:
    tap, teacher_targets, tokens = make_batch()
    row = make_row(loss=loss, temperature=0.1)
    optimizer = torch.optim.Adam(row.parameters(), lr=0.05)
    history = []
    for _ in range(60):
        optimizer.zero_grad()
        total = row(replace(tap, values=tap.values.detach()), teacher_targets, tokens).total
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert sum(history[-5:]) < 0.6 * sum(history[:5])
