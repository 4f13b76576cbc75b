"""The parts of a run that depend on the kind of student, from data to the final recogniser."""

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
from retort.training.text_injection import TextInjection
from retort.training.trainer import REJECTED


@dataclass(frozen=True)
class Plan:
    """A student with its objective, teachers and data.

    Attributes:
        student: with its initial weights.
        objective: rows of the recipe.
        teachers: teachers by name.
        dataset: turns cuts into batches.
        data: training and validation data.
        validate: returns the error rates of a student.
        finish: builds the recogniser of the averaged student, with everything tuned on validation data.
        accelerator: devices and processes.
        texts: text that the decoder is trained on; None for none.
    """

    student: Student
    objective: Objective
    teachers: Mapping[str, Teacher]
    dataset: UtteranceDataset
    data: Data
    validate: Callable[[Student], dict[str, float]]
    finish: Callable[[Student], Recogniser]
    accelerator: Accelerator
    texts: TextInjection | None = None


def note_rejected(recipe: Recipe, root: Path, data: Data, accelerator: Accelerator) -> None:
    """Write the list of rejected utterances; after the first checkpoint the trainer does this."""
    folder = root / recipe.name
    if accelerator.is_main_process and not (folder / "checkpoints").exists():
        write_rejected(data.rejected, folder / REJECTED)
