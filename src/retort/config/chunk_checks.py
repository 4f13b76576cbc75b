"""Checks of recipes of students that are trained in chunks."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.config.student import EncoderConfig


def check_chunks(recipe: Recipe, where: str) -> None:
    """Check that all parts of a student that is trained in chunks are limited to them.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    student, encoder = recipe.student, recipe.student.encoder
    for name, sizes in (("chunk", encoder.chunk), ("left_context", encoder.left_context)):
        if not sizes:
            raise UserError(f"student.encoder.{name} is empty", where=where, remedy="Give one or more numbers")
    if not any(encoder.chunk):
        return
    if not encoder.chunked:
        raise UserError(
            f"student.encoder.chunk is {list(encoder.chunk)}, but {encoder.kind} layers need whole utterances",
            where=where,
            remedy="Choose conformer, transformer, zipformer, or a Whisper encoder",
        )
    for key, value, allowed in (
        ("student.kind", student.kind, ("cif", "ctc", "transducer")),
        ("features.kind", recipe.features.kind, ("fbank", "whisper")),
        ("student.cif.context_layers", student.cif.context_layers, (0,)),
        ("student.cif.fires", student.cif.fires, ("accumulate",)),
        ("student.decoder.kind", student.decoder.kind, ("autoregressive", "whisper")),
        ("training.stored_layers", recipe.training.stored_layers, (0,)),
        ("features.pad_seconds", recipe.features.pad_seconds, (0.0,)),
    ):
        if value not in allowed:
            raise UserError(
                f"{key} is {value}, but student.encoder.chunk is {list(encoder.chunk)}",
                where=where,
                remedy=f"Set {key}: {allowed[0]}",
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
