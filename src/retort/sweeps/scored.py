"""A run that came to its end and was scored, opened without training or decoding anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.config.schema import Recipe
from retort.evaluation.evaluate import Evaluation, evaluated
from retort.sweeps.config import View
from retort.training.run import finished


@dataclass(frozen=True)
class Scored:
    """A finished run.

    Attributes:
        params: of the shipped model.
        seconds: spent in updates.
        evaluations: of its training, greedy, in the order of `data.test`.
        views: the same or others, as they were asked for; None where one is not there yet.
    """

    params: int
    seconds: float
    evaluations: list[Evaluation]
    views: list[Evaluation | None]


def scored(recipe: Recipe, root: Path, views: Sequence[View] = ()) -> Scored | None:
    """What an earlier call trained to the end and scored on all of `data.test`, if nothing has changed since."""
    outcome = finished(recipe, root, "cpu")  # the GPUs belong to those who train
    if outcome is None:
        return None
    own = [View(source) for source in recipe.data.test]
    wanted = {(view.source, view.options) for view in (*own, *views)}
    found = {each: evaluated(outcome.recogniser, each[0], outcome.folder, each[1]) for each in wanted}
    there = [each for view in own if (each := found[view.source, view.options]) is not None]
    if len(there) < len(own):
        return None
    return Scored(
        outcome.params, outcome.seconds, there, [found[view.source, view.options] for view in views]
    )
