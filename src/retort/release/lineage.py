"""The training history of a model: its own recipe and those of its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retort.common.errors import UserError
from retort.config.layers import experiment_name
from retort.config.schema import Recipe
from retort.evaluation.evaluate import data_name
from retort.report.experiment import Experiment, open_experiment


@dataclass(frozen=True)
class Lineage:
    """Recipes in the order of their training, the model's own last.

    Attributes:
        origin: experiment that the first one started from, if its recipe cannot be found.
    """

    recipes: list[Recipe]
    origin: str = ""


def trace(experiment: Experiment, root: Path) -> Lineage:
    """Follow `training.warm_start` and `training.init` back to random weights or to a missing recipe.

    Args:
        experiment: experiment of the model.
        root: folder of the experiments.
    """
    recipes, seen = [experiment.recipe], {experiment.folder.resolve()}
    while parent := _parent(recipes[0], root):
        try:
            before = open_experiment(parent)
        except UserError:
            return Lineage(recipes, shown(str(parent)))
        if before.folder.resolve() in seen:  # retrained from a model that started from it
            return Lineage(recipes, shown(str(parent)))
        seen.add(before.folder.resolve())
        recipes.insert(0, before.recipe)
    return Lineage(recipes)


def training_data(recipe: Recipe) -> str:
    """The training data of a recipe as text."""
    recordings = ", ".join(data_name(Path(each)) for each in recipe.data.train_sources)
    spoken = recipe.data.spoken
    if not spoken.voices:
        return recordings
    texts = [f"the transcripts of {recordings}"] if spoken.transcripts else []
    if spoken.sentences:
        sources = ", ".join(shown(each) for each in spoken.texts)
        texts.append(f"{spoken.sentences:,} sentences of {sources}")
    if not texts:
        return recordings
    engine = {"espeak": "espeak-ng", "kokoro": "Kokoro-82M"}[spoken.engine]
    synthetic = f"{' and '.join(texts)}, read by {engine} in {spoken.voices} voices"
    return synthetic if spoken.transcripts else f"{recordings}; {synthetic}"


def teacher_name(recipe: Recipe, name: str) -> str:
    """Name of a teacher's model, or the experiment of one trained with Retort."""
    return recipe.teachers[name].model.removesuffix("/model")


def distillation(recipe: Recipe) -> str:
    """The rows of a recipe as text, empty without rows."""
    return "; ".join(
        f"{row.tap} by {shown(teacher_name(recipe, row.teacher)) if row.teacher else 'another view'} "
        f"({row.loss}, {row.strength})"
        for row in recipe.distill
    )


def inside(recipe: Recipe) -> str:
    """The models whose weights initialise the decoder, empty without one."""
    decoder = recipe.student.decoder_config
    models = {getattr(decoder, "init", "")} - {""}
    if getattr(decoder, "output", "own") == "plm":
        models.add(recipe.teachers[recipe.tokenizer.teacher].model)
    return " and ".join(sorted(map(shown, models)))


def shown(path: str) -> str:
    """A name or path for publication: absolute paths are reduced to their last two parts."""
    return data_name(Path(path)) if Path(path).is_absolute() else path


def _parent(recipe: Recipe, root: Path) -> Path | None:
    start = recipe.training.warm_start
    if start:
        try:
            return root / experiment_name(start)
        except UserError:  # the recipe has another name today; its experiments kept theirs
            return root / start
    return Path(recipe.training.init) if recipe.training.init else None
