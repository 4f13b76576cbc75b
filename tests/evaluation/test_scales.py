from __future__ import annotations

import pytest

from retort.evaluation.scales import Scales


@pytest.mark.parametrize(
    ("tried", "best", "edge"),
    [
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.45}, 0.2, False),
        ({0.1: 0.3, 0.2: 0.4, 0.3: 0.45}, 0.1, True),
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.4}, 0.2, False),
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.35}, 0.3, True),
        ({0.1: 0.5}, 0.1, False),
    ],
)
def test_the_best_scale_makes_the_fewest_errors(tried: dict[float, float], best: float, edge: bool) -> None:
    found = Scales(tried)
    assert (found.best, found.at_the_edge) == (best, edge)
