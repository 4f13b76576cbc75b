"""Whether a difference is larger than the variation between trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence


def seeds_p(differences: Sequence[float]) -> float | None:
    """Two-sided p value of Student's paired t-test over training seeds.

    The bootstrap of :mod:`retort.evaluation.bootstrap` draws speakers, with the trainings as they are; this test asks
    whether other trainings can be expected to show the same. With three seeds it needs a mean difference of 2.5 times
    the differences' standard deviation for p < 0.05.

    Args:
        differences: difference of two systems' error rates for every seed, at least two.

    Returns:
        None for fewer than two seeds or if all differences are equal: then there is no variation to compare with.
    """
    if len(differences) < 2 or not any(each != differences[0] for each in differences):
        return None
    from scipy.stats import ttest_1samp  # here: slow to import

    found = float(ttest_1samp(differences, 0.0).pvalue)
    return found if math.isfinite(found) else None
