"""What of a run is a kind of student's own, from its data to the recogniser that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from retort.config.schema import Recipe
from retort.corpora.cuts import write_rejected
from retort.decoding.recogniser import Recogniser
from retort.distill.objective import Objective
from retort.students.student import Student
from retort.teachers import Teacher
from retort.training.batches import UtteranceDataset
from retort.training.data import Data
from retort.training.trainer import REJECTED


@dataclass(frozen=True)
class Plan:
    """A student and what it learns from.

    Attributes:
        student: with its first weights.
        objective: the rows of the recipe.
        teachers: by name.
        dataset: turns cuts into batches.
        data: to learn from and to validate on.
        validate: rates of a student as it stands.
        finish: the recogniser of the averaged student, everything chosen that is chosen on validation data.
        accelerator: devices and processes.
    """

    student: Student
    objective: Objective
    teachers: Mapping[str, Teacher]
    dataset: UtteranceDataset
    data: Data
    validate: Callable[[Student], dict[str, float]]
    finish: Callable[[Student], Recogniser]
    accelerator: Accelerator


def note_rejected(recipe: Recipe, root: Path, data: Data, accelerator: Accelerator) -> None:
    """List what cannot be used; with the first checkpoint that becomes the trainer's affair."""
    folder = root / recipe.name
    if accelerator.is_main_process and not (folder / "checkpoints").exists():
        write_rejected(data.rejected, folder / REJECTED)
