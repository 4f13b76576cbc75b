"""Scores of the model that a training starts from, so that it is seen what was gained on new data and lost on old."""

from __future__ import annotations

from pathlib import Path

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.recogniser import load
from retort.evaluation.evaluate import Evaluation, Progress, evaluate
from retort.graph.pool import DecoderPool

BEFORE = "before"
"""In an experiment's folder: what is measured of the model that it started from, in the same order as its own."""


def score_start(
    recipe: Recipe, source: str, folder: Path, pool: DecoderPool, progress: Progress
) -> Evaluation | None:
    """Score the model of `training.init` on a manifest or Kaldi folder, once.

    Args:
        folder: of the experiment; the score is written to `folder/before/evaluation/NAME`.

    Returns:
        None where training starts from no recogniser, or it cannot be opened (any more).
    """
    if not recipe.training.init:
        return None
    try:
        recogniser = load(recipe.training.init)
    except UserError:
        return None
    return evaluate(recogniser.use_pool(pool), source, folder / BEFORE, progress, reuse=True)
