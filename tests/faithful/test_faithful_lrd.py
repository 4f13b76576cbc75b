"""Linguistic regression distillation, and the other acoustic losses of the ablation, next to their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_batches import tap_and_targets
from slow_formulas import project, squared_errors, unit
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.objective import Objective
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets

TAP_DIM, TEACHER_DIM = 5, 768
LENGTHS = [4, 1, 2]


def objective_of(tap: str, loss: str, **changed: Any) -> Objective:
    torch.manual_seed(0)
    return Objective([RowConfig(tap, "bert", loss, **changed)], {tap: TAP_DIM}, {"bert": TEACHER_DIM})


def projected(objective: Objective, tap: Tap, targets: TeacherTargets) -> tuple[np.ndarray, np.ndarray]:
    """Flattened without pads: the row's projections and the teacher's vectors, float64."""
    projection: Any = objective.get_submodule("rows.0.projection")
    weight, bias = (each.detach().double().numpy() for each in (projection.weight, projection.bias))
    pairs = list(zip(tap.values.double(), targets.vectors.double(), LENGTHS))
    student = np.concatenate([values[:length].numpy() for values, _, length in pairs])
    teacher = np.concatenate([spoken[:length].numpy() for _, spoken, length in pairs])
    return project(student, weight, bias), teacher


def total(objective: Objective, tap: str, batch: tuple[Tap, TeacherTargets]) -> Tensor:
    result = objective({tap: batch[0]}, {("bert", "token"): batch[1]})
    return (result.token_sum + result.utterance_sum).detach()


def test_the_published_row_is_a_hundredth_of_the_sum_over_dimensions() -> None:
    batch = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective = objective_of("linguistic", "regression", weight=0.01, reduce="sum")
    slow = squared_errors(*projected(objective, *batch))
    assert len(slow) == sum(LENGTHS)
    np.testing.assert_allclose(
        float(total(objective, "linguistic", batch)), 0.01 * math.fsum(slow), rtol=1e-5
    )


def test_a_hundredth_of_the_sum_is_7_68_times_the_mean_of_768() -> None:
    batch = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    summed = total(objective_of("linguistic", "regression", weight=0.01, reduce="sum"), "linguistic", batch)
    mean = total(objective_of("linguistic", "regression", weight=1.0, reduce="mean"), "linguistic", batch)
    np.testing.assert_allclose(float(summed / mean), 0.01 * TEACHER_DIM, rtol=1e-5)


def test_the_posters_average_is_over_utterances_of_means_over_their_tokens() -> None:
    batch = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective = objective_of("linguistic", "regression", weight=0.01, average="utterance")
    slow = squared_errors(*projected(objective, *batch))
    starts = np.cumsum([0, *LENGTHS])
    means = [math.fsum(slow[start : start + n]) / n for start, n in zip(starts, LENGTHS)]
    np.testing.assert_allclose(
        float(total(objective, "linguistic", batch)), 0.01 * math.fsum(means), rtol=1e-5
    )


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_squared_error_of_the_fired_vectors(reduce: str) -> None:
    batch = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective = objective_of("acoustic", "regression", reduce=reduce)
    slow = math.fsum(squared_errors(*projected(objective, *batch))) / (TEACHER_DIM if reduce == "mean" else 1)
    np.testing.assert_allclose(float(total(objective, "acoustic", batch)), slow, rtol=1e-5)


def test_one_minus_cosine_of_the_fired_vectors() -> None:
    batch = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective = objective_of("acoustic", "cosine")
    student, teacher = projected(objective, *batch)
    slow = math.fsum(1.0 - float(unit(s) @ unit(t)) for s, t in zip(student, teacher))
    np.testing.assert_allclose(float(total(objective, "acoustic", batch)), slow, rtol=1e-5)


def test_half_precision_states_are_compared_in_float32() -> None:
    tap, targets = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective = objective_of("linguistic", "regression", weight=0.01)
    half = Tap(tap.values.bfloat16(), tap.lengths, "token")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = total(objective, "linguistic", (half, targets))
    student, teacher = projected(objective, half, targets)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(float(got), 0.01 * math.fsum(squared_errors(student, teacher)), rtol=1e-5)
