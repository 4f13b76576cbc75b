"""Checks of a student's values against each other, and against features and tokenizer."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.chunk_checks import check_chunks
from retort.config.schema import Recipe
from retort.config.student import StudentConfig, check_whisper_decoder


def check_student(recipe: Recipe, where: str) -> None:
    """Check the student against itself, features and tokenizer.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    student = recipe.student
    _check_kind(student, where)
    _check_fires(student, where)
    _check_spare(student, where)
    positions = getattr(student.encoder, "positions", "relative")
    if student.faithful and positions != "relative":
        raise UserError(
            f"student.faithful is true, but student.encoder.positions is {positions}",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    _check_speech(recipe, where)
    check_chunks(recipe, where)
    _check_whisper(recipe, where)
    student.decoder.check(recipe, where)
    _check_stored_layers(recipe, where)


def _check_kind(student: StudentConfig, where: str) -> None:
    """Check that students without fired embeddings have no options of CIF."""
    kind = student.kind
    if kind not in ("ctc", "attention", "transducer", "whisper"):
        return
    if student.faithful:
        raise UserError(
            f"student.faithful reproduces the reference's CIF model, but student.kind is {kind}",
            where=where,
            remedy="Set faithful: false",
        )
    if student.decoder.kind != "autoregressive":
        raise UserError(
            f"student.decoder.kind is {student.decoder.kind}, but student.kind is {kind}",
            where=where,
            remedy="Remove it: only a CIF student has other kinds of decoders",
        )
    for key in ("window", "output_dim", "init"):
        if value := getattr(student.decoder, key):
            raise UserError(
                f"student.decoder.{key} is {value}, but student.kind is {kind}",
                where=where,
                remedy="Remove it: it requires student.kind: cif",
            )
    if kind == "ctc" and not student.ctc_weight > 0.0:
        raise UserError(
            f"student.ctc_weight is {student.ctc_weight:g}, but CTC is the only loss of a ctc student",
            where=where,
            remedy="Set ctc_weight: 1.0",
        )


def _check_fires(student: StudentConfig, where: str) -> None:
    """Check students that fire at the peaks of the CTC head."""
    if student.kind != "cif" or student.cif.fires != "ctc":
        return
    if student.faithful:
        raise UserError(
            "student.cif.fires is ctc, but student.faithful reproduces the reference's accumulation",
            where=where,
            remedy="Set faithful: false, or fires: accumulate",
        )
    if not student.ctc_weight > 0.0:
        raise UserError(
            f"student.cif.fires is ctc, but student.ctc_weight is {student.ctc_weight:g}: "
            "the CTC head would not be trained",
            where=where,
            remedy="Set ctc_weight: 0.5",
        )
    default = StudentConfig()
    for name in ("quantity_weight", "alignment_weight"):
        if (weight := getattr(student, name)) not in (0.0, getattr(default, name)):
            raise UserError(
                f"student.{name} is {weight:g}, but student.cif.fires is ctc: no CIF weights are predicted",
                where=where,
                remedy="Remove it, or set fires: accumulate",
            )


def _check_spare(student: StudentConfig, where: str) -> None:
    """Check additional fires in decoding."""
    if student.cif.spare and not (student.kind == "cif" and student.decoder.kind == "whisper"):
        raise UserError(
            f"student.cif.spare is {student.cif.spare}, but student.decoder.kind is {student.decoder.kind}",
            where=where,
            remedy="Set spare: 0, or student.kind: cif with decoder.kind: whisper",
        )


def _check_stored_layers(recipe: Recipe, where: str) -> None:
    """Check the lower encoder layers that are frozen and whose outputs are stored."""
    training, encoder = recipe.training, recipe.student.encoder
    stored = training.stored_layers
    if stored > encoder.layers:
        raise UserError(
            f"training.stored_layers is {stored}, student.encoder.layers is {encoder.layers}",
            where=where,
            remedy=f"Choose from 0 to {encoder.layers}",
        )
    if stored == 0:
        return
    if recipe.student.kind == "hybrid":
        raise UserError(
            f"training.stored_layers is {stored}, but student.kind is hybrid",
            where=where,
            remedy="Remove it",
        )
    if not (encoder.model or training.init or training.warm_start):
        raise UserError(
            f"training.stored_layers is {stored}, but there is no initial model: these layers would stay random",
            where=where,
            remedy="Set student.encoder.model, training.init or training.warm_start, or remove stored_layers",
        )
    if recipe.augment.noise:
        raise UserError(
            "augment.noise changes the audio in every epoch, but training.stored_layers stores the layers' outputs",
            where=where,
            remedy="Remove one of them",
        )
    for index, row in enumerate(recipe.distill):
        name, _, number = row.tap.partition(".")
        if name == "frames" and number.isdecimal() and int(number) < stored:
            raise UserError(
                f"distill[{index}].tap is {row.tap}, but training.stored_layers is {stored}: that layer is not trained",
                where=where,
                remedy=f"Choose frames.{stored} or a later layer",
            )


def _check_speech(recipe: Recipe, where: str) -> None:
    """Check a pretrained encoder against features and augmentation."""
    encoder, features = recipe.student.encoder, recipe.features
    if features.kind not in encoder.reads:
        raise UserError(
            f"student.encoder.kind is {encoder.kind}, features.kind is {features.kind}",
            where=where,
            remedy=f"Set features.kind: {' or '.join(encoder.reads)}",
        )
    encoder.check(recipe, where)
    if encoder.kind != "pretrained":
        return
    of_waves = {"augment.frequency_masks": (recipe.augment.frequency_masks, 0, "Set 0: a wave has no frequency bins")}
    wanted = {
        **(of_waves if features.kind == "wave" else {}),
        "student.cif.context_layers": (
            recipe.student.cif.context_layers,
            0,
            "Set 0: a pretrained encoder has no context layers",
        ),
        "student.faithful": (recipe.student.faithful, False, "Set false: the reference has no pretrained encoder"),
    }
    for key, (value, only, remedy) in wanted.items():
        if value != only:
            raise UserError(f"{key} is {value} with a pretrained encoder", where=where, remedy=remedy)


def _check_whisper(recipe: Recipe, where: str) -> None:
    """Check Whisper decoders and Whisper's tokenizer."""
    if recipe.student.kind == "whisper":
        check_whisper_decoder(recipe, "student.kind", where)
    if recipe.tokenizer.kind == "whisper" and not (recipe.tokenizer.model or recipe.student.encoder.model):
        raise UserError(
            "tokenizer.kind is whisper, but tokenizer.model is missing",
            where=where,
            remedy="Set tokenizer.model: whisper-base",
        )
