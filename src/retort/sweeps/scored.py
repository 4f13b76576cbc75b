"""Finished and scored runs, loaded without training or decoding."""

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
        params: number of parameters of the exported model.
        seconds: training time.
        evaluations: greedy evaluations of the training run, in the order of `data.test`.
        views: evaluations of the requested views; None for one that is missing.
    """

    params: int
    seconds: float
    evaluations: list[Evaluation]
    views: list[Evaluation | None]


def scored(recipe: Recipe, root: Path, views: Sequence[View] = ()) -> Scored | None:
    """The run of an earlier call if it is finished, scored on all of `data.test`, and unchanged since."""
    outcome = finished(recipe, root, "cpu")  # the GPUs are used by trainings
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
