"""A run that came to its end and was scored, opened without training or decoding anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retort.config import Recipe
from retort.evaluation.evaluate import Evaluation, evaluated
from retort.training.run import finished


@dataclass(frozen=True)
class Scored:
    """A finished run; its evaluations are in the order of `data.test`, its seconds were spent in updates."""

    params: int
    seconds: float
    evaluations: list[Evaluation]


def scored(recipe: Recipe, root: Path) -> Scored | None:
    """What an earlier call trained to the end and scored on all of `data.test`, if nothing has changed since."""
    outcome = finished(recipe, root, "cpu")  # the GPUs belong to those who train
    if outcome is None:
        return None
    found = [evaluated(outcome.recogniser, source, outcome.folder) for source in recipe.data.test]
    evaluations = [each for each in found if each is not None]
    if len(evaluations) < len(found):
        return None
    return Scored(outcome.params, outcome.seconds, evaluations)
