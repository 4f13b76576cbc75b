"""A trainer as `retort train` sets it up, without what comes before and after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lhotse import CutSet
from torch import Tensor

from retort.config.schema import Recipe
from retort.distill.objective import Objective
from retort.engine.processes import make_accelerator
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.teachers import open_teacher
from retort.text.tokenizers import CharacterTokenizer
from retort.training.batches import Batch, UtteranceDataset
from retort.training.module import TrainingModule
from retort.training.trainer import Trainer

NO_DROPOUT = (
    "student.encoder.dropout=0",
    "student.cif.dropout=0",
    "student.decoder.dropout=0",
    "student.decoder.embedding_dropout=0",
)


def trainer_of(
    recipe: Recipe,
    folder: Path,
    cuts: CutSet,
    validate: Callable[[CifStudent], dict[str, float]] = lambda student: {"cer": 0.5},
    letters: str = "abcdefgh",
    accelerator: Accelerator | None = None,
) -> Trainer:
    """Trains a fresh student of the recipe, which knows these letters, on `cuts`; writes into `folder`."""
    accelerator = accelerator or make_accelerator(recipe.training)
    tokenizer = CharacterTokenizer(["▁", *letters])
    torch.manual_seed(recipe.seed)
    student = build_student(recipe.student, tokenizer.size, recipe.features.bins)
    teachers = {name: open_teacher(config) for name, config in recipe.teachers.items()}
    dims = {name: teacher.dim for name, teacher in teachers.items()}
    module = TrainingModule(student, Objective(recipe.distill, student.tap_dims, dims))
    dataset = UtteranceDataset(recipe, tokenizer, student.encoder.output_lengths, None)
    return Trainer(recipe, folder, module, teachers, dataset, cuts, validate, accelerator)


def read_cuts(manifest: Path) -> CutSet:
    return CutSet.from_file(manifest).to_eager()


def batch_of(trainer: Trainer, cuts: CutSet, first: int, last: int) -> Batch:
    """Of the cuts `first` to `last`, that one left out."""
    return trainer.dataset[CutSet.from_cuts(list(cuts)[first:last])]


def update(
    trainer: Trainer, group: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What one update reports, and the gradients that it follows."""
    gradients: dict[str, Tensor] = {}

    def keep() -> None:
        for name, parameter in trainer.module.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()

    monkeypatch.setattr(trainer.optimizer, "step", keep)
    return trainer._update(group), gradients
