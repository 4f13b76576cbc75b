from __future__ import annotations

import itertools
import math

import pytest

from retort.config.schema import TrainingConfig
from retort.engine.optim import learning_rate


def rates(config: TrainingConfig) -> list[float]:
    return [learning_rate(step, config) for step in range(config.steps + 1)]


def test_tri_stage_at_its_corners() -> None:
    config = TrainingConfig(steps=1000, peak_lr=1.0, floor_share=0.01, warmup_steps=100, hold_steps=300)
    values = rates(config)
    assert values[0] == pytest.approx(0.01 + 0.99 / 100)
    assert values[49] == pytest.approx(0.01 + 0.99 / 2)
    assert values[99:401] == [pytest.approx(1.0)] * 302
    assert values[401] < 1.0
    assert values[700] == pytest.approx(0.1)  # half way down, on a logarithmic scale
    assert values[1000] == pytest.approx(0.01)


def test_tri_stage_decays_by_one_factor() -> None:
    values = rates(TrainingConfig(steps=200, warmup_steps=20, hold_steps=30))[50:]
    factors = {round(after / before, 9) for before, after in itertools.pairwise(values)}
    assert len(factors) == 1
    assert factors.pop() == pytest.approx(0.01 ** (1 / 150))


def test_cosine_at_its_corners() -> None:
    config = TrainingConfig(
        steps=1100, schedule="cosine", peak_lr=2.0, warmup_steps=100, hold_steps=500, floor_share=0.5
    )
    values = rates(config)
    assert values[0] == pytest.approx(0.02)
    assert values[99] == pytest.approx(2.0)
    assert values[100] == pytest.approx(2.0)
    assert values[350] == pytest.approx(1.0 + math.cos(math.pi / 4))
    assert values[600] == pytest.approx(1.0)
    assert values[1100] == pytest.approx(0.0, abs=1e-12)


def test_eden_is_its_formula() -> None:
    """Equation 8 of the paper; neither the end of the run nor the floor has a say."""
    config = TrainingConfig(
        steps=10, schedule="eden", peak_lr=0.045, warmup_steps=500, eden_steps=7500, eden_epochs=3.5,
        floor_share=0.3, hold_steps=9,
    )  # fmt: skip
    for step, epoch in itertools.product((0, 1, 250, 499, 500, 7500, 10**6), (0, 1, 7)):
        falling = ((step**2 + 7500**2) / 7500**2) ** -0.25 * ((epoch**2 + 3.5**2) / 3.5**2) ** -0.25
        warm = 0.5 + 0.5 * step / 500 if step < 500 else 1.0
        assert learning_rate(step, config, epoch) == pytest.approx(0.045 * falling * warm)
    assert learning_rate(7500, config) == pytest.approx(0.045 * 2**-0.25)


def test_eden_without_warm_up_begins_at_its_peak() -> None:
    config = TrainingConfig(schedule="eden", peak_lr=2.0, warmup_steps=0)
    assert learning_rate(0, config) == 2.0


@pytest.mark.parametrize("schedule", ["tri_stage", "cosine"])
def test_the_others_do_not_know_the_epoch(schedule: str) -> None:
    config = TrainingConfig(steps=300, schedule=schedule)
    assert learning_rate(150, config, 7) == learning_rate(150, config)


@pytest.mark.parametrize("schedule", ["tri_stage", "cosine", "eden"])
@pytest.mark.parametrize(("warmup", "hold", "steps"), [(0, 0, 10), (10, 0, 10), (20, 5, 10), (1, 0, 1)])
def test_degenerate_lengths_stay_between_zero_and_the_peak(
    schedule: str, warmup: int, hold: int, steps: int
) -> None:
    config = TrainingConfig(
        steps=steps, schedule=schedule, peak_lr=1e-3, warmup_steps=warmup, hold_steps=hold
    )
    values = rates(config)
    assert all(0.0 <= value <= 1e-3 * (1 + 1e-9) for value in values)
    assert values[: max(min(warmup, steps), 1)][-1] > 0.0


@pytest.mark.parametrize("schedule", ["tri_stage", "cosine"])
def test_it_rises_and_then_never_rises_again(schedule: str) -> None:
    values = rates(TrainingConfig(steps=300, schedule=schedule, warmup_steps=50, hold_steps=40))
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
