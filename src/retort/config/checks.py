"""What may not stand beside what in a recipe; of students and of distillation in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retort.common.errors import UserError
from retort.config.schema import CHOICES, ROW_CHOICES, TEACHER_CHOICES, LoraConfig, Recipe, RowConfig
from retort.config.student_checks import check_student

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


class UnknownChoice(UserError):
    """A word that is not among the choices of its key."""


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


def check_recipe(recipe: Recipe, where: str) -> None:
    """Cross-checks between fields.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    check_choices(recipe, CHOICES, where)
    for name, teacher in recipe.teachers.items():
        for key, choices in TEACHER_CHOICES.items():
            _choose(f"teachers.{name}.{key}", getattr(teacher, key), choices, where)
    for index, row in enumerate(recipe.distill):
        for key, choices in ROW_CHOICES.items():
            _choose(f"distill[{index}].{key}", getattr(row, key), choices, where)
        _choose(f"distill[{index}].teacher", row.teacher, tuple(recipe.teachers), where)
    _check_lora(recipe.training.lora, where)
    if recipe.training.stored != "float32" and recipe.training.lora.parts:
        raise UserError(
            f"training.stored is {recipe.training.stored}, but training.lora trains adapters of exact weights",
            where=where,
            remedy="Leave one of them out",
        )
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
    for name in training.allow:
        _choose("training.allow", name, ("new_output",), where)


def _check_lora(lora: LoraConfig, where: str) -> None:
    if lora.rank < 1:
        raise UserError(f"training.lora.rank is {lora.rank}", where=where, remedy="Give 1 or more, e.g. 8")
    if not lora.alpha > 0.0:
        raise UserError(f"training.lora.alpha is {lora.alpha:g}", where=where, remedy="Choose above 0")
    if not 0.0 <= lora.dropout < 1.0:
        raise UserError(
            f"training.lora.dropout is {lora.dropout:g}", where=where, remedy="Choose from 0 to less than 1"
        )


def _check_shares(recipe: Recipe, where: str) -> None:
    """The entries of `data.train`, and that they can fill a batch together."""
    for index, entry in enumerate(recipe.data.train):
        _check_entry(f"data.train[{index}]", entry, where)
    shares = [share for share in recipe.data.train_shares if share is not None]
    spoken, total = recipe.data.spoken, sum(shares)
    if not shares:
        return
    if spoken.voices and spoken.transcripts:
        raise UserError(
            "data.train has shares, but data.spoken.transcripts replaces its recordings",
            where=where,
            remedy="Set data.spoken.transcripts: false, or leave the shares out",
        )
    others = len(shares) < len(recipe.data.train) or bool(spoken.voices and spoken.sentences)
    if others and not total < 1.0 - 1e-6:
        raise UserError(
            f"the shares of data.train sum to {total:g}, which leaves nothing for the data without a share",
            where=where,
            remedy="Let them sum to less than 1",
        )
    if not others and abs(total - 1.0) > 1e-3:
        raise UserError(
            f"the shares of data.train sum to {total:g}",
            where=where,
            remedy="Let them sum to 1, or leave out that of one entry",
        )


def _check_entry(key: str, entry: object, where: str) -> None:
    if isinstance(entry, str):
        return
    keys = {str(name) for name in entry} if isinstance(entry, dict) else set()
    if not isinstance(entry, dict) or "source" not in keys or keys - {"source", "share"}:
        raise UserError(f"{key} is {entry}", where=where, remedy="Give a path, or {source: PATH, share: 0.3}")
    source, share = entry["source"], entry.get("share")
    if not isinstance(source, str) or not source:
        raise UserError(f"{key}.source is {source}", where=where, remedy="Give a manifest or a Kaldi folder")
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if share is not None and not (number and 0.0 < share <= 1.0):
        raise UserError(f"{key}.share is {share}", where=where, remedy="Give a number above 0, at most 1")


def _check_tests(recipe: Recipe, where: str) -> None:
    """Scores are named by the last two parts of a path."""
    names = [Path(each).parts[-2:] for each in recipe.data.test]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"two entries of data.test would both be called {'/'.join(twice)}",
            where=where,
            remedy="Name each once; rename the folder of one",
        )


def _check_data(recipe: Recipe, where: str) -> None:
    """What is heard, how it is changed, and the graph that a hybrid system searches."""
    _check_shares(recipe, where)
    _check_tests(recipe, where)
    speeds, spoken = recipe.augment.speeds, recipe.data.spoken
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise needs the wave at each visit", where=where, remedy="Set features.storage: online"
        )
    if len(set(speeds)) < len(speeds) or not speeds:
        raise UserError(f"augment.speeds is {speeds}", where=where, remedy="Name different speeds")
    pairs = {f"data.spoken.{name}": getattr(spoken, name) for name in ("words", "rate", "pitch", "snr", "speed")}
    pairs["augment.noise_snr"] = recipe.augment.noise_snr
    pairs["batches, minimum_seconds and maximum_seconds,"] = [
        recipe.batches.minimum_seconds,
        recipe.batches.maximum_seconds,
    ]
    for key, values in pairs.items():
        if values[0] > values[1]:
            raise UserError(f"{key} is {list(values)}", where=where, remedy="Give the lower one first")
    if spoken.sentences and not spoken.voices:
        raise UserError(
            "data.spoken.sentences without a voice", where=where, remedy="Set data.spoken.voices, e.g. 16"
        )
    if not recipe.hybrid.acoustic_scales:
        raise UserError(
            f"hybrid.acoustic_scales is {list(recipe.hybrid.acoustic_scales)}",
            where=where,
            remedy="Give some above 0",
        )


def _choose(key: str, value: object, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UnknownChoice(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")
