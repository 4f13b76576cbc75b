from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from retort.evaluation.seeds import seeds_p


def slow_p(differences: list[float]) -> float:
    """From the density of Student's t distribution, integrated over both tails by the midpoint rule."""
    count = len(differences)
    t = abs(statistics.fmean(differences)) / (statistics.stdev(differences) / math.sqrt(count))
    freedom = count - 1
    density = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    steps = 200_000
    places = (np.arange(steps) + 0.5) * t / steps
    inside = float(((1 + places**2 / freedom) ** (-(freedom + 1) / 2)).sum()) * density * t / steps
    return 1 - 2 * inside


@pytest.mark.parametrize(
    "differences", [[-0.0034, -0.0078, -0.0067], [-0.0177, -0.0019, -0.0039], [0.01, 0.02], [0.3, -0.1, 0.2, 0.0, 0.1]]
)
def test_it_is_students_test(differences: list[float]) -> None:
    found = seeds_p(differences)
    assert found == pytest.approx(slow_p(differences), abs=1e-6)
    assert seeds_p([-each for each in differences]) == pytest.approx(found)


def test_chance_is_below_005_in_one_of_twenty() -> None:
    draws = np.random.default_rng(5).normal(size=(2000, 3))
    below = np.mean([(p := seeds_p(row.tolist())) is not None and p < 0.05 for row in draws])
    assert below == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_without_variation_there_is_no_test(differences: list[float]) -> None:
    assert seeds_p(differences) is None
