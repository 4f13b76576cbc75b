"""What may not stand beside what in the teachers and rows of a recipe."""

from __future__ import annotations

from retort.config import Recipe, RowConfig
from retort.errors import UserError

NO_HARD_LOSS = {
    "ctc": "CTC has no hard label at a position, only of an utterance",
    "transducer": "a transducer has no hard loss of a token",
}
"""Why no row can take the place of hard labels, by `student.kind`."""


def check_distillation(recipe: Recipe, where: str) -> None:
    """Teachers, rows, and whether the student can be taught so.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    _check_teachers(recipe, where)
    _check_soft_labels(recipe, where)
    _check_frames(recipe, where)


def _check_teachers(recipe: Recipe, where: str) -> None:
    for name, teacher in recipe.teachers.items():
        if teacher.unit != "text" and recipe.student.kind != "hybrid":
            raise UserError(
                f"teachers.{name}.unit is {teacher.unit}, but only a hybrid student has alignments",
                where=where,
                remedy="Set unit: text",
            )
        if teacher.kind == "whisper" and (teacher.unit != "text" or recipe.student.kind == "hybrid"):
            raise UserError(
                f"teachers.{name} is a whisper, which teaches the tokens of a text",
                where=where,
                remedy="Choose a student that writes tokens, and unit: text",
            )
        if teacher.kind in ("causal_lm", "whisper") and teacher.topk is None:
            raise UserError(
                f"teachers.{name} is a {teacher.kind} without topk",
                where=where,
                remedy="Set topk, e.g. 10: it gives soft labels alone",
            )


def _check_soft_labels(recipe: Recipe, where: str) -> None:
    for index, row in enumerate(recipe.distill):
        soft = row.loss == "soft_label"
        if row.loss != "hard_label" and soft != (recipe.teachers[row.teacher].topk is not None):
            raise UserError(
                f"distill[{index}].loss is {row.loss}, teacher {row.teacher} {'lacks' if soft else 'has'} topk",
                where=where,
                remedy="soft_label goes with a teacher with topk, the other losses with one without",
            )
        taps = "senones or frames.N" if recipe.student.kind == "hybrid" else "tokens"
        if soft and taps == "tokens" and row.tap != "tokens":
            raise UserError(
                f"distill[{index}] lays soft_label on tap '{row.tap}'", where=where, remedy=f"Set tap: {taps}"
            )
        if not row.temperature > 0.0:
            raise UserError(
                f"distill[{index}].temperature is {row.temperature}", where=where, remedy="Choose above 0"
            )
        _check_interpolation(row, recipe.student.kind, f"{where}: distill[{index}]")


def _check_frames(recipe: Recipe, where: str) -> None:
    """Rows on frames: of a hybrid student they meet the teacher by its alignment, of others by `pool`."""
    for index, row in enumerate(recipe.distill):
        frames, pooled = row.tap.startswith("frames."), row.pool != "none"
        if recipe.student.kind != "hybrid" and frames and not pooled:
            raise UserError(
                f"distill[{index}] reads {row.tap}, and this student has no alignment of frames",
                where=where,
                remedy="Set pool: cif or attention, or choose another tap",
            )
        if pooled and (recipe.student.kind == "hybrid" or not frames):
            raise UserError(
                f"distill[{index}].pool is {row.pool} for {row.tap} of a {recipe.student.kind} student",
                where=where,
                remedy="It goes with frames.N of a student that writes tokens",
            )
        if pooled and row.loss in ("soft_label", "hard_label"):
            raise UserError(
                f"distill[{index}].pool is {row.pool} for {row.loss}",
                where=where,
                remedy="It goes with losses of vectors",
            )
        dim = recipe.student.encoder.dim
        if row.pool == "attention" and dim % (2 * row.pool_heads):
            raise UserError(
                f"distill[{index}].pool_heads is {row.pool_heads} for frames of {dim} dimensions",
                where=where,
                remedy="Choose a number whose double divides them",
            )


def _check_interpolation(row: RowConfig, student: str, where: str) -> None:
    if row.interpolate and student in NO_HARD_LOSS:
        raise UserError(
            f"interpolate is {row.interpolate:g}, but {NO_HARD_LOSS[student]}",
            where=where,
            remedy="Set weight instead",
        )
    fits = row.loss == "soft_label" and row.tap in ("tokens", "senones")
    if row.interpolate and not (fits and row.weight == 1.0 and row.average == "token"):
        raise UserError(
            "interpolate shares out the hard label's place between it and the teacher",
            where=where,
            remedy="It goes with soft_label on tokens or senones, without weight and average",
        )
