"""Scores, their uncertainty, and comparisons."""

from __future__ import annotations

from retort.evaluation.bootstrap import Comparison, compare, intervals
from retort.evaluation.scoring import (
    Counts,
    Interval,
    Score,
    UtteranceScore,
    alignment,
    read_score,
    score,
    score_from_dict,
    score_to_dict,
)

__all__ = [
    "Comparison",
    "Counts",
    "Interval",
    "Score",
    "UtteranceScore",
    "alignment",
    "compare",
    "intervals",
    "read_score",
    "score",
    "score_from_dict",
    "score_to_dict",
]
