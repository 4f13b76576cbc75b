"""`retort train`: from data to a scored model, including missing earlier stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from retort.common.errors import UserError
from retort.common.locks import Waiting, alone_in, check_there
from retort.common.progress import StageProgress
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.corpora.cuts import Rejected, read_rejected
from retort.decoding.recogniser import Recogniser, load
from retort.engine.checkpoints import CheckpointFolder, chosen_steps
from retort.engine.folder import claim, is_of, save_whole, tidy, tidy_if_free
from retort.engine.loop import Report, noted
from retort.engine.processes import report_lost_processes
from retort.training.hybrid_run import plan_hybrid
from retort.training.module import TrainingModule
from retort.training.plan import Plan
from retort.training.prerequisites import missing_warm_start
from retort.training.row_start import needs_texts, start_rows
from retort.training.teach import normalised_texts
from retort.training.token_run import plan_tokens
from retort.training.trainer import REJECTED, Trainer

Planner = Callable[[Recipe, Path, str, StageProgress, Report], Plan]
PLANS: dict[str, Planner] = {"hybrid": plan_hybrid}
"""Planning functions for kinds of students whose output is not tokens."""


@dataclass
class Outcome:
    """A finished run.

    Attributes:
        folder: `exp/NAME`.
        recogniser: the averaged model, as saved in `folder/model`.
        seconds: time spent in updates.
        steps: number of updates.
        params: number of parameters of the exported model.
        averaged: steps of the checkpoints in the average.
        rejected: training and validation utterances that were not usable.
        before: whether an earlier call had already finished the run.
    """

    folder: Path
    recogniser: Recogniser
    seconds: float
    steps: int
    params: int
    averaged: list[int]
    rejected: list[Rejected]
    before: bool = False


@report_lost_processes()
def train(
    recipe: Recipe, root: Path, progress: StageProgress, report: Report, *, waiting: Waiting | None = None
) -> Outcome:
    """Train a recipe in `root/NAME`, resuming an earlier call; a finished run is only loaded.

    Args:
        recipe: checked recipe.
        root: folder of the experiments; features are in `root/cache`, shared by all of them.
        progress: called during the stages before training.
        report: called during training.
        waiting: called with a message before waiting for another run of the same experiment; None raises an error instead.

    Raises:
        UserError: the data, the recipe or the experiment's folder is invalid, or another process trains it.
    """
    folder = root / recipe.name
    if (outcome := finished(recipe, root)) is not None:
        tidy_if_free(folder)
        return outcome
    with alone_in(folder, waiting):
        tidy(folder)
        claim(folder, recipe)
        return finished(recipe, root) or _train(recipe, root, progress, report)


def _train(recipe: Recipe, root: Path, progress: StageProgress, report: Report) -> Outcome:
    """The body of :func:`train`, while the experiment is locked."""
    folder = root / recipe.name
    origin = _warm_start(recipe, root, progress, report)
    plan = PLANS.get(recipe.student.kind, plan_tokens)(recipe, root, origin, progress, report)
    start_rows(
        recipe,
        folder,
        origin,
        plan.student,
        plan.objective,
        plan.teachers,
        plan.dataset,
        plan.data.train,
        normalised_texts(plan.data.train, recipe.normaliser) if any(map(needs_texts, recipe.distill)) else [],
        plan.accelerator,
        noted(report),
        plan.data.groups,
    )
    trainer = Trainer(
        recipe,
        folder,
        TrainingModule(plan.student, plan.objective, recipe.seed, plan.texts),
        plan.teachers,
        plan.dataset,
        plan.data.train,
        plan.validate,
        plan.accelerator,
        plan.data.rejected,
        plan.data.groups,
    )
    for line in trainer.resume():
        report(trainer.position.step, {"warning": line})
    trainer.run(report)
    return _finish(plan, trainer)


def finished(recipe: Recipe, root: Path, device: str | None = None) -> Outcome | None:
    """The outcome of an earlier call with the same recipe, if it has finished and its model exists.

    Args:
        device: device of the recogniser; by default that of the recipe.
    """
    folder, steps = root / recipe.name, recipe.training.steps
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if not is_of(folder, recipe) or steps not in checkpoints.steps():
        return None
    if device is None:
        device = "cpu" if recipe.training.device == "cpu" or not torch.cuda.is_available() else "cuda"
    try:
        state = checkpoints.state(steps)
        averaged = chosen_steps(checkpoints.steps(), state["scores"], recipe.training)
        seconds = float(state["seconds"])
        recogniser = load(folder / "model", device)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    torch.set_num_threads(recipe.training.threads)
    params = sum(parameter.numel() for parameter in recogniser.student.parameters())
    rejected = read_rejected(folder / REJECTED)
    return Outcome(folder, recogniser, seconds, steps, params, averaged, rejected, before=True)


def _warm_start(recipe: Recipe, root: Path, progress: StageProgress, report: Report) -> str:
    """The experiment that the student is initialised from, trained first if necessary; empty for none."""
    if not recipe.training.warm_start:
        return recipe.training.init
    if first := missing_warm_start(recipe, root):
        name, waiting = first.name, noted(report)
        train(
            first, root, lambda stage, *counts: progress(f"{name}: {stage}", *counts), report, waiting=waiting
        )
    return str(root / load_recipe(recipe.training.warm_start).name)


def _finish(plan: Plan, trainer: Trainer) -> Outcome:
    averaged = trainer.chosen()
    trainer.student.load_state_dict(trainer.checkpoints.average(averaged, trainer.merge))
    recogniser = plan.finish(trainer.student)
    if trainer.accelerator.is_main_process:
        check_there(trainer.folder)
        save_whole(partial(recogniser.save, link=True), trainer.folder / "model")
    trainer.accelerator.wait_for_everyone()
    position = trainer.position
    params = sum(parameter.numel() for parameter in trainer.student.parameters())
    return Outcome(
        trainer.folder, recogniser, position.seconds, position.step, params, averaged, trainer.rejected
    )
