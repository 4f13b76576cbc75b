"""Models that must be trained before a recipe: its initial model and its teachers."""

from __future__ import annotations

from pathlib import Path

from retort.common.errors import UserError
from retort.common.locks import alone_in
from retort.common.progress import StageProgress
from retort.config.loading import load_recipe
from retort.config.schema import Recipe, TeacherConfig
from retort.engine.loop import Report, noted
from retort.lm.config import LmRecipe, load_lm_recipe
from retort.lm_training.run import train_lm_here


def missing_warm_start(recipe: Recipe, root: Path) -> Recipe | None:
    """The recipe that must be trained before this one; None if there is none or its model exists."""
    if not recipe.training.warm_start:
        return None
    first = load_recipe(recipe.training.warm_start)
    return None if _trained(root / first.name / "model") else first


def train_teachers(recipe: Recipe, root: Path, progress: StageProgress, report: Report) -> None:
    """Train the missing language models of the recipe's teachers.

    If several runs need the same model, one of them trains it and the others wait.

    Raises:
        UserError: a teacher's `recipe` creates another model than its `model`, or as :func:`train_lm`.
    """
    needed = {row.teacher for row in recipe.distill if row.teacher}
    if recipe.tokenizer.kind == "teacher":
        needed.add(recipe.tokenizer.teacher)
    for name in sorted(needed):
        teacher = recipe.teachers[name]
        if teacher.recipe and not _trained(Path(teacher.model)):
            _train_teacher(name, teacher, root, progress, report)


def trained_lm(recipe: LmRecipe, root: Path, progress: StageProgress, report: Report) -> Path:
    """The model of a language model's recipe, trained first if it is missing, while other runs wait."""
    made = root / recipe.name / "model"
    if _trained(made):
        return made
    with alone_in(made.parent, noted(report)):
        if not _trained(made):
            train_lm_here(
                recipe, root, lambda stage, *counts: progress(f"{recipe.name}: {stage}", *counts), report
            )
    return made


def _train_teacher(name: str, teacher: TeacherConfig, root: Path, progress: StageProgress, report: Report) -> None:
    first = load_lm_recipe(teacher.recipe)
    made = root / first.name / "model"
    if made.resolve() != Path(teacher.model).resolve():
        raise UserError(
            f"teachers.{name}.model is {teacher.model}, which its recipe does not create",
            where=teacher.recipe,
            remedy=f"Set teachers.{name}.model={made}",
        )
    trained_lm(first, root, progress, report)


def _trained(model: Path) -> bool:
    return (model / "config.json").is_file()
