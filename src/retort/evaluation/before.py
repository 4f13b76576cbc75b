"""Scores of the initial model of a training, to compare new and old data before and after it."""

from __future__ import annotations

from pathlib import Path

from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.config.schema import Recipe
from retort.decoding.recogniser import load
from retort.evaluation.evaluate import Evaluation, evaluate
from retort.graph.pool import DecoderPool

BEFORE = "before"
"""Folder of an experiment with the scores of its initial model, laid out like its own scores."""


def score_start(
    recipe: Recipe, source: str, folder: Path, pool: DecoderPool, progress: StageProgress
) -> Evaluation | None:
    """Score the model of `training.init` on a manifest or Kaldi folder, once.

    Args:
        folder: folder of the experiment; the score is written to `folder/before/evaluation/NAME`.

    Returns:
        None if training does not start from a recogniser, or if it cannot be opened.
    """
    if not recipe.training.init:
        return None
    try:
        recogniser = load(recipe.training.init)
    except UserError:
        return None
    return evaluate(recogniser.use_pool(pool), source, folder / BEFORE, progress, reuse=True)
