"""Checks of a student against features, tokenizer and training; those of each kind are methods of its configuration."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.config.student import EncoderConfig, require


def check_student(recipe: Recipe, where: str) -> None:
    """Check the student against the rest of the recipe.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    encoder = recipe.student.encoder
    require(f"student.encoder.kind is {encoder.kind}", where, ("features.kind", recipe.features.kind, encoder.reads))
    encoder.check(recipe, where)
    recipe.student.check(recipe, where)
    _check_chunks(recipe, where)
    _check_stored_layers(recipe, where)


def _check_chunks(recipe: Recipe, where: str) -> None:
    """Check that all parts of a student that is trained in chunks are limited to them."""
    encoder = recipe.student.encoder
    for name, sizes in (("chunk", encoder.chunk), ("left_context", encoder.left_context)):
        if not sizes:
            raise UserError(f"student.encoder.{name} is empty", where=where, remedy="Give one or more numbers")
    if not any(encoder.chunk):
        return
    reason = f"student.encoder.chunk is {list(encoder.chunk)}"
    if not encoder.chunked:
        raise UserError(
            f"{reason}, but {encoder.kind} layers need whole utterances",
            where=where,
            remedy="Choose conformer, transformer, zipformer, or a Whisper encoder",
        )
    if not recipe.student.chunked:
        raise UserError(
            f"student.kind is {recipe.student.kind}, but {reason}",
            where=where,
            remedy="Set student.kind: cif, ctc or transducer",
        )
    require(
        reason,
        where,
        ("features.kind", recipe.features.kind, ("fbank", "whisper")),
        ("training.stored_layers", recipe.training.stored_layers, (0,)),
        ("features.pad_seconds", recipe.features.pad_seconds, (0.0,)),
    )
    if not recipe.features.streams:
        raise UserError(
            "features.statistics is utterance, but with student.encoder.chunk the rest of the utterance is not known",
            where=where,
            remedy="Set features.statistics: running",
        )
    _check_sizes(encoder, where)


def _check_sizes(encoder: EncoderConfig, where: str) -> None:
    for number, factor in enumerate(getattr(encoder, "downsampling", []), start=1):
        rate = 2 ** sum(each >= number for each in encoder.pool_after)
        for size in encoder.chunk:
            if size * rate % factor:
                raise UserError(
                    f"student.encoder.chunk has {size}, of which stack {number} with downsampling {factor} makes no "
                    "whole number of frames",
                    where=where,
                    remedy=f"Choose multiples of {factor}",
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
