"""What may not stand beside what in a recipe; of students and of distillation in files of their own."""

from __future__ import annotations

from collections.abc import Mapping

from retort.config import CHOICES, ROW_CHOICES, TEACHER_CHOICES, LoopConfig, Recipe
from retort.distill_checks import check_distillation
from retort.errors import UserError
from retort.student_checks import check_student


def check_choices(recipe: object, choices: Mapping[str, tuple[str, ...]], where: str) -> None:
    """Check the values at the dotted keys of `choices`.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    for key, allowed in choices.items():
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        _choose(key, value, allowed, where)


def check_loop(training: LoopConfig, where: str) -> None:
    """Numbers of a training that cannot be, whatever learns.

    Raises:
        UserError: with the key and its value.
    """
    for name in ("eden_steps", "eden_epochs"):
        value = getattr(training, name)
        if not value > 0.0:
            raise UserError(f"training.{name} is {value:g}", where=where, remedy="Choose above 0")


def check_recipe(recipe: Recipe, where: str) -> None:
    """Cross-checks between fields.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    check_choices(recipe, CHOICES, where)
    check_loop(recipe.training, where)
    for name, teacher in recipe.teachers.items():
        for key, choices in TEACHER_CHOICES.items():
            _choose(f"teachers.{name}.{key}", getattr(teacher, key), choices, where)
    for index, row in enumerate(recipe.distill):
        for key, choices in ROW_CHOICES.items():
            _choose(f"distill[{index}].{key}", getattr(row, key), choices, where)
        _choose(f"distill[{index}].teacher", row.teacher, tuple(recipe.teachers), where)
    check_distillation(recipe, where)
    _check_tokenizer(recipe, where)
    _check_data(recipe, where)
    check_student(recipe, where)


def _check_tokenizer(recipe: Recipe, where: str) -> None:
    """And the model that a run starts from."""
    tokenizer, training = recipe.tokenizer, recipe.training
    if tokenizer.kind == "bpe" and tokenizer.size is None:
        raise UserError(
            "tokenizer.kind is bpe without tokenizer.size", where=where, remedy="Add size, e.g. 300"
        )
    if tokenizer.kind == "init" and not (training.init or training.warm_start):
        raise UserError(
            "tokenizer.kind is init without a model to start from",
            where=where,
            remedy="Set training.init or training.warm_start, or choose another kind",
        )
    if tokenizer.kind == "teacher":
        _choose("tokenizer.teacher", tokenizer.teacher, tuple(recipe.teachers), where)
    if training.init and training.warm_start:
        raise UserError(
            "training.init and training.warm_start exclude each other", where=where, remedy="Set one of them"
        )
    if training.init_parts and not (training.init or training.warm_start):
        raise UserError(
            "training.init_parts without a model to start from",
            where=where,
            remedy="Set training.init or training.warm_start, or leave it out",
        )


def _check_data(recipe: Recipe, where: str) -> None:
    """What is heard, how it is changed, and the graph that a hybrid system searches."""
    speeds, spoken = recipe.augment.speeds, recipe.data.spoken
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise needs the wave at each visit", where=where, remedy="Set features.storage: online"
        )
    if len(set(speeds)) < len(speeds) or not speeds:
        raise UserError(f"augment.speeds is {speeds}", where=where, remedy="Name different speeds")
    for name in ("words", "rate", "pitch", "snr", "speed"):
        values = getattr(spoken, name)
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(
                f"data.spoken.{name} is {list(values)}", where=where, remedy="Give the lowest and the highest"
            )
    if not 0.5 <= spoken.speed[0] <= spoken.speed[1] <= 2.0:
        raise UserError(
            f"data.spoken.speed is {list(spoken.speed)}", where=where, remedy="Choose within 0.5 and 2"
        )
    for name in ("mixes", "worst"):
        if not 0.0 <= (value := getattr(spoken, name)) <= 1.0:
            raise UserError(f"data.spoken.{name} is {value:g}", where=where, remedy="Choose 0 to 1")
    if spoken.processes < 0:
        raise UserError(
            f"data.spoken.processes is {spoken.processes}", where=where, remedy="Choose 0 or above"
        )
    if spoken.sentences and not spoken.voices:
        raise UserError(
            "data.spoken.sentences without a voice", where=where, remedy="Set data.spoken.voices, e.g. 16"
        )
    if not recipe.hybrid.acoustic_scales or min(recipe.hybrid.acoustic_scales) <= 0.0:
        raise UserError(
            f"hybrid.acoustic_scales is {list(recipe.hybrid.acoustic_scales)}",
            where=where,
            remedy="Give some above 0",
        )


def _choose(key: str, value: object, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UserError(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")
