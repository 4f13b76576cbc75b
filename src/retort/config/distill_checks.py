"""Checks of teachers and rows of distillation against each other and against the student."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.distill import VECTORS, compared_by
from retort.config.schema import Recipe, RowConfig
from retort.config.student import StudentConfig


def check_distillation(recipe: Recipe, where: str) -> None:
    """Check teachers and rows of distillation against the student.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    _check_teachers(recipe, where)
    for index, row in enumerate(recipe.distill):
        _check_teacher(recipe, row, f"distill[{index}]", where)
        _check_labels(recipe, row, f"distill[{index}]", where)
        _check_frames(recipe, row, f"distill[{index}]", where)
        _check_vectors(recipe, row, f"{where}: distill[{index}]")
        _check_share(row, f"{where}: distill[{index}]")


def _check_teachers(recipe: Recipe, where: str) -> None:
    for name, teacher in recipe.teachers.items():
        if teacher.unit != "text" and recipe.student.kind != "hybrid":
            raise UserError(
                f"teachers.{name}.unit is {teacher.unit}, which only a hybrid student supports",
                where=where,
                remedy="Set unit: text",
            )
        if teacher.reads_audio and recipe.student.kind == "hybrid":
            raise UserError(
                f"teachers.{name} is a {teacher.kind}, whose soft labels are over tokens of text",
                where=where,
                remedy="Choose another student.kind than hybrid",
            )


def _check_teacher(recipe: Recipe, row: RowConfig, key: str, where: str) -> None:
    """Check that the row has a teacher, with the outputs that its loss compares, or needs none."""
    compared = compared_by(row.loss)
    if compared == "views":
        if row.teacher:
            raise UserError(
                f"{key}.teacher is '{row.teacher}', but {row.loss} has none",
                where=where,
                remedy="Remove teacher",
            )
        if row.tap not in ("ctc", "tokens"):
            raise UserError(
                f"{key}.tap is {row.tap} for {row.loss}", where=where, remedy="Set tap: ctc or tokens"
            )
        return
    if row.teacher not in recipe.teachers:
        remedy = f"Choose one of {', '.join(recipe.teachers)}" if recipe.teachers else "Add it to teachers"
        raise UserError(f"{key}.teacher is '{row.teacher}'", where=where, remedy=remedy)
    soft = compared == "symbols"
    if compared != "labels" and soft != (recipe.teachers[row.teacher].topk is not None):
        raise UserError(
            f"{key}.loss is {row.loss}, but teacher {row.teacher} {'lacks' if soft else 'has'} topk",
            where=where,
            remedy="soft_label requires a teacher with topk, the other losses one without",
        )


def _check_labels(recipe: Recipe, row: RowConfig, key: str, where: str) -> None:
    soft = compared_by(row.loss) == "symbols"
    taps = "senones or frames.N" if recipe.student.kind == "hybrid" else "tokens"
    if soft and taps == "tokens" and row.tap != "tokens":
        raise UserError(
            f"{key}.loss is {row.loss}, but tap is '{row.tap}'", where=where, remedy=f"Set tap: {taps}"
        )
    if not row.temperature > 0.0:
        raise UserError(
            f"{key}.temperature is {row.temperature}", where=where, remedy="Choose a number above 0"
        )
    _check_interpolation(row, recipe.student, f"{where}: {key}")


def _check_frames(recipe: Recipe, row: RowConfig, key: str, where: str) -> None:
    """Check a row on frames: a hybrid student maps frames to the teacher by its alignment, other students by `pool`."""
    frames, pooled = row.tap.startswith("frames.") or row.tap == "encoder", row.pool != "none"
    whole = compared_by(row.loss) == "frames"
    if whole and (not frames or pooled):
        raise UserError(
            f"{key}.loss is {row.loss}, but tap is '{row.tap}'{' with pool' if pooled else ''}",
            where=where,
            remedy="Set tap: encoder or frames.N, without pool",
        )
    if recipe.student.kind != "hybrid" and frames and not pooled and not whole:
        raise UserError(
            f"{key}.tap is {row.tap}, but this student has no alignment of frames",
            where=where,
            remedy="Set pool: cif or attention, or choose another tap",
        )
    if pooled and (recipe.student.kind == "hybrid" or not frames):
        raise UserError(
            f"{key}.pool is {row.pool} for {row.tap} of a {recipe.student.kind} student",
            where=where,
            remedy="pool requires tap: frames.N and another student.kind than hybrid",
        )
    if pooled and compared_by(row.loss) not in ("projected", "unprojected"):
        raise UserError(
            f"{key}.pool is {row.pool} for {row.loss}",
            where=where,
            remedy="pool requires a loss on vectors: contrastive, regression, cosine or relational",
        )
    dim = recipe.student.encoder.dim
    if row.pool == "attention" and dim % (2 * row.pool_heads):
        raise UserError(
            f"{key}.pool_heads is {row.pool_heads}, student.encoder.dim is {dim}",
            where=where,
            remedy="student.encoder.dim must be a multiple of 2 x pool_heads",
        )


def _check_vectors(recipe: Recipe, row: RowConfig, where: str) -> None:
    """Check the settings that only rows on the vectors of tokens have."""
    compared = compared_by(row.loss)
    set_here = [name for name in ("normalise", "control") if getattr(row, name) != "none"]
    set_here += ["valid"] if row.valid != "all" else []
    if set_here and (compared not in VECTORS or recipe.student.kind == "hybrid"):
        raise UserError(
            f"{set_here[0]} is {getattr(row, set_here[0])} for {row.loss} of a {recipe.student.kind} student",
            where=where,
            remedy=f"Remove {set_here[0]}: it requires vectors of tokens",
        )
    if row.tap == "utterance" and (row.valid != "all" or row.control == "static"):
        name = "valid" if row.valid != "all" else "control"
        raise UserError(
            f"{name} is {getattr(row, name)}, but the positions of tap 'utterance' are not tokens",
            where=where,
            remedy=f"Remove {name}",
        )
    if row.init != "random" and (compared != "projected" or row.pool != "none"):
        raise UserError(
            f"init is {row.init} for {row.loss}{'' if row.pool == 'none' else f' with pool: {row.pool}'}",
            where=where,
            remedy="Remove init: it requires a loss with a projection, and no pool",
        )


def _check_share(row: RowConfig, where: str) -> None:
    if row.share and (row.interpolate or row.weight != 1.0):
        name = "interpolate" if row.interpolate else "weight"
        raise UserError(
            f"share is {row.share:g} and {name} is {getattr(row, name):g}",
            where=where,
            remedy="Remove one of them: share sets the weight",
        )


def _check_interpolation(row: RowConfig, student: StudentConfig, where: str) -> None:
    if row.interpolate and not student.hard_labels:
        raise UserError(
            f"interpolate is {row.interpolate:g}, but the loss of a {student.kind} student has no label per position",
            where=where,
            remedy="Set weight instead",
        )
    fits = compared_by(row.loss) == "symbols" and row.tap in ("tokens", "senones")
    if row.interpolate and not (fits and row.weight == 1.0 and row.average == "token"):
        raise UserError(
            f"interpolate is {row.interpolate:g} for {row.loss} on {row.tap}",
            where=where,
            remedy="interpolate requires soft_label on tokens or senones, without weight and average",
        )
