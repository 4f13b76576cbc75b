from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill import Objective, Row
from retort.students.student import Tap, Unit
from retort.teachers.targets import TeacherTargets

DIMS = {"acoustic": 4, "linguistic": 3, "utterance": 4}
TEACHERS = {"bert": 6, "gpt": 5}
LENGTHS = torch.tensor([3, 1, 2])
TOKENS = torch.arange(9).view(3, 3)


def row(tap: str = "acoustic", loss: str = "regression", teacher: str = "bert", **others: Any) -> RowConfig:
    return RowConfig(tap=tap, teacher=teacher, loss=loss, **others)


def make_taps() -> dict[str, Tap]:
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones_like(LENGTHS)
    return {
        "acoustic": Tap(torch.randn(3, 3, 4, generator=generator), LENGTHS, "token"),
        "linguistic": Tap(torch.randn(3, 3, 3, generator=generator), LENGTHS, "token"),
        "utterance": Tap(torch.randn(3, 1, 4, generator=generator), ones, "utterance"),
    }


def make_targets(teacher: str, unit: Unit) -> TeacherTargets:
    generator = torch.Generator().manual_seed(len(teacher + unit))
    lengths, size = (LENGTHS, 3) if unit == "token" else (torch.ones_like(LENGTHS), 1)
    valid = torch.arange(size) < lengths[:, None]
    place = torch.arange(valid.numel()).view(valid.shape)
    vectors = torch.randn(3, size, TEACHERS[teacher], generator=generator)
    return TeacherTargets(vectors, valid, torch.stack([place, place + 1], -1) * valid[..., None])


def make_objective(*rows: RowConfig, **others: Any) -> Objective:
    torch.manual_seed(0)
    return Objective(list(rows), DIMS, TEACHERS, **others)


def test_rows_are_weighted_and_summed_and_logged_unweighted() -> None:
    objective = make_objective(
        row(loss="contrastive", weight=2.0),
        row("linguistic", weight=0.5, teacher="gpt"),
        row(loss="cosine", weight=3.0, average="utterance"),
        row("utterance", weight=0.1),
    )
    taps = make_taps()
    torch.manual_seed(1)
    result = objective(taps, make_targets, TOKENS)
    torch.manual_seed(1)
    totals = []
    for each, need in zip(objective.rows, objective.row_needs):
        assert isinstance(each, Row)
        totals.append(each(taps[each.config.tap], make_targets(*need), TOKENS).total)
    torch.testing.assert_close(result.token_sum, 2.0 * totals[0] + 0.5 * totals[1] + 0.1 * totals[3])
    torch.testing.assert_close(result.utterance_sum, 3.0 * totals[2])
    names = ["acoustic.contrastive", "linguistic.regression", "acoustic.cosine", "utterance.regression"]
    for name, total, count in zip(names, totals, (6, 6, 3, 3)):
        torch.testing.assert_close(result.metrics[name].sum, total.detach())
        assert result.metrics[name].count == count
        assert not result.metrics[name].sum.requires_grad
    marks = {
        "acoustic.contrastive.accuracy",
        "acoustic.contrastive.negatives",
        "linguistic.regression.power",
        "utterance.regression.power",
    }
    assert set(result.metrics) == {*names, *marks}
    assert result.metrics["acoustic.contrastive.accuracy"].count == 6
    (result.token_sum + result.utterance_sum).backward()
    assert all(each.grad is not None for each in objective.parameters())


def test_sums_add_up_over_parts_of_a_batch() -> None:
    """What lets the trainer divide once over accumulation steps and ranks."""
    objective = make_objective(row("linguistic"), row(average="utterance"))
    taps, signal = make_taps(), make_targets("bert", "token")
    whole = objective(taps, {("bert", "token"): signal})
    sums = torch.zeros(2)
    for part in (slice(0, 1), slice(1, 3)):
        few = {name: Tap(tap.values[part], tap.lengths[part], tap.unit) for name, tap in taps.items()}
        given = TeacherTargets(signal.vectors[part], signal.valid[part], signal.sources[part])
        result = objective(few, {("bert", "token"): given})
        sums += torch.stack([result.token_sum, result.utterance_sum]).detach()
    torch.testing.assert_close(sums, torch.stack([whole.token_sum, whole.utterance_sum]).detach())


def test_needs_and_how_often_they_are_asked_for() -> None:
    objective = make_objective(row(), row("linguistic"), row("utterance"), row("linguistic", teacher="gpt"))
    needs: set[tuple[str, Unit]] = {("bert", "token"), ("bert", "utterance"), ("gpt", "token")}
    assert objective.needs == needs
    asked: list[tuple[str, Unit]] = []

    def signals(teacher: str, unit: Unit) -> TeacherTargets:
        asked.append((teacher, unit))
        return make_targets(teacher, unit)

    lazy = objective(make_taps(), signals)
    assert sorted(asked) == sorted(needs)
    given = objective(make_taps(), {need: make_targets(*need) for need in needs})
    torch.testing.assert_close(lazy.token_sum, given.token_sum)


def test_units_can_be_announced() -> None:
    objective = make_objective(row(), tap_units={"acoustic": "utterance"})
    assert objective.needs == {("bert", "utterance")}
    with pytest.raises(ValueError, match="tap acoustic has unit token, but was declared as utterance"):
        objective(make_taps(), make_targets)


def test_repeated_rows_have_their_own_names_and_projections() -> None:
    objective = make_objective(row(), row(teacher="gpt"), row(), row(loss="cosine"))
    names = ["acoustic.regression", "acoustic.regression.2", "acoustic.regression.3", "acoustic.cosine"]
    assert objective.names == names
    marks = {f"{name}.power" for name in names[:3]}
    assert set(objective(make_taps(), make_targets).metrics) == {*names, *marks}
    assert len(list(objective.parameters())) == 8


def test_warm_up_scales_the_sum_and_not_the_log() -> None:
    objective = make_objective(row(weight=2.0, warmup_steps=10))
    results = [objective(make_taps(), make_targets, step=step) for step in (0, 5, 10, 20)]
    loss = results[0].metrics["acoustic.regression"].sum
    assert loss > 0
    for result, share in zip(results, (0.0, 0.5, 1.0, 1.0)):
        torch.testing.assert_close(result.token_sum, 2.0 * share * loss)
        assert result.metrics["acoustic.regression"].sum == loss


def test_no_rows_are_zero() -> None:
    result = make_objective()(make_taps(), {})
    assert (result.token_sum, result.utterance_sum, result.metrics) == (0, 0, {})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("acustic"), r"distill\[1\]: unknown tap 'acustic'. Choose one of acoustic, linguistic, utterance"),
        (row(teacher="bart"), r"distill\[1\]: unknown teacher 'bart'. Choose one of bert, gpt"),
        (row("utterance", "contrastive", same_token_negatives=False), "tap 'utterance' are not tokens"),
    ],
)
def test_a_row_that_fits_nothing_is_reported_in_one_line(bad: RowConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_objective(row(), bad)
    assert "\n" not in str(caught.value)


def test_a_mismatch_names_the_row() -> None:
    taps = make_taps()
    taps["linguistic"] = Tap(taps["linguistic"].values, torch.tensor([3, 2, 2]), "token")
    with pytest.raises(ValueError, match=r"linguistic\.regression: utterance 1 of the batch has 2 positions"):
        make_objective(row(), row("linguistic"))(taps, make_targets)


def test_the_losses_load_without_students_and_teachers() -> None:
    """They are plain functions for any toolkit."""
    code = "import sys, retort.distill; print([n for n in sys.modules if n.startswith('retort.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "retort.distill.losses.contrastive" in loaded
    assert "retort.students" not in loaded
    assert "retort.teachers" not in loaded
