"""Alignments of data that are not the training data of a hybrid system's aligner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.config.loading import recipe_from_dict
from retort.config.schema import Recipe
from retort.decoding.options import GREEDY
from retort.evaluation.evaluate import evaluation_name
from retort.students.hybrid import HybridStudent
from retort.students.student import Student

_LIKE = 0.01
"""Relative difference of priors due to float16."""


def aligner_folder(recipe: Recipe, experiment: Path) -> Path:
    """Folder of the aligner and of the alignments of `data.train`."""
    return Path(recipe.hybrid.alignments or experiment / "alignments")


def aligned_folder(recipe: Recipe, experiment: Path, sources: Sequence[str]) -> Path:
    """Folder of the alignments of other data, next to those of training, named like their evaluations.

    Raises:
        UserError: the data cannot be found.
    """
    name = "+".join(evaluation_name(source, GREEDY) for source in sources)
    return aligner_folder(recipe, experiment) / "others" / name


def open_aligned(model: Path, source: str, student: Student) -> AlignmentStore | None:
    """Alignments of a manifest or Kaldi folder in the senones of a student, if `retort train` has made them.

    Args:
        model: `EXP`, `EXP/model` or a release, whose recipe determines the alignments.
        student: student of that model; alignments to other senones are ignored.

    Raises:
        UserError: they are broken.
    """
    if not isinstance(student, HybridStudent) or (found := _recipe(model)) is None:
        return None
    recipe, experiment = found
    try:
        folder = aligned_folder(recipe, experiment, [source])
    except UserError:
        return None
    first = aligner_folder(recipe, experiment) / "alignments"
    if not all((each / "store.json").is_file() for each in (first, folder / "alignments")):
        return None
    learned, aligned = AlignmentStore(first), AlignmentStore(folder)
    same = str(learned.tree) == str(aligned.tree)
    return aligned if same and _has_priors(student, learned) else None


def _recipe(model: Path) -> tuple[Recipe, Path] | None:
    """The recipe of a model, and its folder."""
    for folder in (model, model.parent) if model.name == "model" else (model,):
        path = folder / "recipe.json"
        if path.is_file():
            try:
                return recipe_from_dict(read_json(path), str(path)), folder
            except (ValueError, UserError):
                return None
    return None


def _has_priors(student: HybridStudent, learned: AlignmentStore) -> bool:
    """Whether a student was trained with these alignments, by its senone priors."""
    own = student.log_priors.double().exp().cpu().numpy()
    return own.shape == learned.priors.shape and bool(np.allclose(own, learned.priors, rtol=_LIKE, atol=0.0))
