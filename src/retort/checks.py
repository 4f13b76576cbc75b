"""What may not stand beside what in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retort.config import CHOICES, ROW_CHOICES, TEACHER_CHOICES, LoopConfig, Recipe, RowConfig, SpokenConfig
from retort.errors import UserError
from retort.student_checks import check_dropout, check_sizes
from retort.student_config import DecoderConfig, StudentConfig


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

    def choose(key: str, value: object, choices: tuple[str, ...]) -> None:
        _choose(key, value, choices, where)

    check_choices(recipe, CHOICES, where)
    check_loop(recipe.training, where)
    for name, teacher in recipe.teachers.items():
        for key, choices in TEACHER_CHOICES.items():
            choose(f"teachers.{name}.{key}", getattr(teacher, key), choices)
    for index, row in enumerate(recipe.distill):
        for key, choices in ROW_CHOICES.items():
            choose(f"distill[{index}].{key}", getattr(row, key), choices)
        choose(f"distill[{index}].teacher", row.teacher, tuple(recipe.teachers))
    _check_hybrid(recipe, where)
    _check_kind(recipe, where)
    _check_soft_labels(recipe, where)
    _check_frames(recipe, where)
    if recipe.tokenizer.kind == "bpe" and recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.kind is bpe without tokenizer.size", where=where, remedy="Add size, e.g. 300"
        )
    if recipe.tokenizer.kind == "init" and not (recipe.training.init or recipe.training.warm_start):
        raise UserError(
            "tokenizer.kind is init without a model to start from",
            where=where,
            remedy="Set training.init or training.warm_start, or choose another kind",
        )
    if recipe.tokenizer.kind == "teacher":
        choose("tokenizer.teacher", recipe.tokenizer.teacher, tuple(recipe.teachers))
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise needs the wave at each visit", where=where, remedy="Set features.storage: online"
        )
    if recipe.student.faithful and recipe.student.encoder.positions != "relative":
        raise UserError(
            "student.faithful needs the reference's positions",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    if recipe.training.init and recipe.training.warm_start:
        raise UserError(
            "training.init and training.warm_start exclude each other", where=where, remedy="Set one of them"
        )
    if len(set(recipe.augment.speeds)) < len(recipe.augment.speeds) or not recipe.augment.speeds:
        raise UserError(
            f"augment.speeds is {recipe.augment.speeds}", where=where, remedy="Name different speeds"
        )
    _check_speech(recipe, where)
    _check_decoder(recipe, where)
    check_sizes(recipe.student, where)
    check_dropout(recipe.student, where)
    _check_spoken(recipe.data.spoken, where)
    if recipe.student.kind == "transducer":
        _check_transducer(recipe.student, recipe.distill, where)


def _check_transducer(student: StudentConfig, rows: Sequence[RowConfig], where: str) -> None:
    transducer = student.transducer
    if student.decoder.output == "plm" or student.decoder.init:
        raise UserError(
            "student.decoder takes parts of a PLM, but a transducer has no such decoder",
            where=where,
            remedy="Leave student.decoder.output and init out",
        )
    for name in ("context", "layers", "dim", "joiner_dim", "symbols"):
        if getattr(transducer, name) < 1:
            raise UserError(
                f"student.transducer.{name} is {getattr(transducer, name)}",
                where=where,
                remedy="Give 1 or more",
            )
    if transducer.monotonic and transducer.symbols > 1:
        raise UserError(
            f"student.transducer.symbols is {transducer.symbols}, but a monotonic transducer has one token a frame",
            where=where,
            remedy="Leave symbols out",
        )
    for index, row in enumerate(rows):
        if row.interpolate:
            raise UserError(
                f"distill[{index}].interpolate is {row.interpolate:g}, but a transducer has no hard loss of a token",
                where=where,
                remedy="Give the row a weight instead",
            )


def _check_hybrid(recipe: Recipe, where: str) -> None:
    for name, teacher in recipe.teachers.items():
        if teacher.unit != "text" and recipe.student.kind != "hybrid":
            raise UserError(
                f"teachers.{name}.unit is {teacher.unit}, but only a hybrid student has alignments",
                where=where,
                remedy="Set unit: text",
            )
    if not recipe.hybrid.acoustic_scales or min(recipe.hybrid.acoustic_scales) <= 0.0:
        raise UserError(
            f"hybrid.acoustic_scales is {list(recipe.hybrid.acoustic_scales)}",
            where=where,
            remedy="Give some above 0",
        )


def _check_kind(recipe: Recipe, where: str) -> None:
    """What students with a CTC head, or with that and attention, have nothing of."""
    student, kind = recipe.student, recipe.student.kind
    if kind not in ("ctc", "attention"):
        return
    if student.faithful:
        raise UserError(
            f"student.faithful restores the reference's CIF, but student.kind is {kind}",
            where=where,
            remedy="Set faithful: false",
        )
    if student.decoder.output == "plm" or student.decoder.init:
        raise UserError(
            f"student.decoder wants a PLM inside, but student.kind is {kind}",
            where=where,
            remedy="Leave output and init out: a decoder over fired embeddings alone takes them",
        )
    if kind == "ctc" and not student.ctc_weight > 0.0:
        raise UserError(
            f"student.ctc_weight is {student.ctc_weight:g}, of the only loss of a ctc student",
            where=where,
            remedy="Set ctc_weight: 1.0",
        )
    for index, row in enumerate(recipe.distill):
        if kind == "ctc" and row.interpolate:
            raise UserError(
                f"distill[{index}].interpolate, but CTC has no hard label at a position, only of an utterance",
                where=where,
                remedy="Set weight, and student.ctc_weight",
            )


def _check_spoken(spoken: SpokenConfig, where: str) -> None:
    for name in ("words", "rate", "pitch", "snr"):
        values = getattr(spoken, name)
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(
                f"data.spoken.{name} is {list(values)}", where=where, remedy="Give the lowest and the highest"
            )
    if spoken.sentences and not spoken.voices:
        raise UserError(
            "data.spoken.sentences without a voice", where=where, remedy="Set data.spoken.voices, e.g. 16"
        )


def _check_soft_labels(recipe: Recipe, where: str) -> None:
    for name, teacher in recipe.teachers.items():
        if teacher.kind == "causal_lm" and teacher.topk is None:
            raise UserError(
                f"teachers.{name} is a causal_lm without topk",
                where=where,
                remedy="Set topk, e.g. 10: it gives soft labels alone",
            )
        if teacher.topk is not None and teacher.topk < 1:
            raise UserError(f"teachers.{name}.topk is {teacher.topk}", where=where, remedy="Choose 1 or more")
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
        _check_interpolation(row, f"{where}: distill[{index}]")


def _check_frames(recipe: Recipe, where: str) -> None:
    """Rows on frames: of a hybrid student they meet the teacher by its alignment, of others by `pool`."""
    for index, row in enumerate(recipe.distill):
        frames, pooled = row.tap.startswith("frames."), row.pool != "none"
        if recipe.student.kind == "cif" and frames and not pooled:
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
        if not row.quantity_weight >= 0.0:
            raise UserError(
                f"distill[{index}].quantity_weight is {row.quantity_weight}",
                where=where,
                remedy="Choose 0 or more",
            )
        dim = recipe.student.encoder.dim
        if row.pool_heads < 1 or (row.pool == "attention" and dim % (2 * row.pool_heads)):
            raise UserError(
                f"distill[{index}].pool_heads is {row.pool_heads} for frames of {dim} dimensions",
                where=where,
                remedy="Choose a number whose double divides them",
            )


def _check_interpolation(row: RowConfig, where: str) -> None:
    if not 0.0 <= row.interpolate <= 1.0:
        raise UserError(f"interpolate is {row.interpolate}", where=where, remedy="Choose from 0 to 1")
    fits = row.loss == "soft_label" and row.tap in ("tokens", "senones")
    if row.interpolate and not (fits and row.weight == 1.0 and row.average == "token"):
        raise UserError(
            "interpolate shares out the hard label's place between it and the teacher",
            where=where,
            remedy="It goes with soft_label on tokens or senones, without weight and average",
        )


def _check_decoder(recipe: Recipe, where: str) -> None:
    decoder = recipe.student.decoder
    if decoder.kind == "parallel":
        _check_parallel(decoder, where)
    if decoder.output == "plm" and recipe.tokenizer.kind != "teacher":
        raise UserError(
            "student.decoder.output is plm, but the tokens are not a PLM's",
            where=where,
            remedy="Set tokenizer.kind: teacher, and tokenizer.teacher",
        )
    if (decoder.output == "plm") != (decoder.output_dim is not None):
        raise UserError(
            f"student.decoder.output is {decoder.output}, output_dim is {decoder.output_dim}",
            where=where,
            remedy="State output_dim, the width of its embeddings, for plm and for nothing else",
        )
    if decoder.init_layers and len(decoder.init_layers) != decoder.layers:
        raise UserError(
            f"student.decoder.init_layers names {len(decoder.init_layers)} for {decoder.layers} layers",
            where=where,
            remedy="Name one for each, or none",
        )


def _check_speech(recipe: Recipe, where: str) -> None:
    """A pretrained encoder, and the wave that it hears."""
    encoder, features = recipe.student.encoder, recipe.features
    if (encoder.kind == "pretrained") != (features.kind == "wave"):
        raise UserError(
            f"student.encoder.kind is {encoder.kind}, features.kind is {features.kind}",
            where=where,
            remedy="pretrained goes with wave, all other encoders with fbank",
        )
    if encoder.kind != "pretrained":
        if encoder.model:
            raise UserError(
                "student.encoder.model is of pretrained encoders alone",
                where=where,
                remedy="Set student.encoder.kind: pretrained",
            )
        return
    size = features.sampling_rate // 100
    wanted = {
        "features.bins": (features.bins, size, f"Set {size}, the samples of 10 ms"),
        "features.storage": (features.storage, "online", "Set online: the wave is on disk already"),
        "augment.frequency_masks": (recipe.augment.frequency_masks, 0, "Set 0: a wave has no bands"),
        "student.encoder.layers": (encoder.layers, 1, "Set 1: the whole model counts as one"),
        "student.cif.context_layers": (
            recipe.student.cif.context_layers,
            0,
            "Set 0: there are no such layers",
        ),
        "student.faithful": (recipe.student.faithful, False, "Set false: the reference has no such encoder"),
    }
    for key, (value, only, remedy) in wanted.items():
        if value != only:
            raise UserError(f"{key} is {value} beside a pretrained encoder", where=where, remedy=remedy)
    if not encoder.model and not encoder.architecture:
        raise UserError(
            "student.encoder.kind is pretrained without student.encoder.model",
            where=where,
            remedy="Name a model, such as facebook/hubert-base-ls960",
        )


def _check_parallel(decoder: DecoderConfig, where: str) -> None:
    for key, given in (
        ("history_dropout", decoder.history_dropout != 0.0),
        ("init", bool(decoder.init)),
        ("output: plm", decoder.output == "plm"),
    ):
        if given:
            raise UserError(
                f"student.decoder has {key}, but kind parallel: it reads no history and starts from no PLM",
                where=where,
                remedy="Leave it out, or set kind: autoregressive",
            )
    if not 0.0 <= decoder.glancing <= 1.0:
        raise UserError(
            f"student.decoder.glancing is {decoder.glancing}", where=where, remedy="Choose from 0 to 1"
        )


def _choose(key: str, value: object, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UserError(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")
