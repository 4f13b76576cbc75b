"""Checks of a recipe's values against each other; those of the student are in `student_checks.py`."""

from __future__ import annotations

from pathlib import Path

from retort.common.errors import UserError
from retort.config.distill_checks import check_distillation
from retort.config.ranges import choose
from retort.config.schema import Recipe
from retort.config.student_checks import check_student


def check_recipe(recipe: Recipe, where: str) -> None:
    """Check the values of a recipe against each other.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
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
    _check_text_injection(recipe, where)


def _check_text_injection(recipe: Recipe, where: str) -> None:
    """Check that the student has a decoder that can be trained on text."""
    config, student = recipe.text_injection, recipe.student
    least, most = config.tokens
    if least > most:
        raise UserError(f"text_injection.tokens is {config.tokens}", where=where, remedy="Give the lower number first")
    if not config.texts:
        return
    decoder = getattr(student.decoder_config, "kind", "")
    if student.kind != "cif" or decoder == "parallel":
        own = f"kind is {student.kind}" if student.kind != "cif" else f"decoder.kind is {decoder}"
        raise UserError(
            f"text_injection.texts is set, but student.{own}",
            where=where,
            remedy="Remove it: it requires student.kind: cif with an autoregressive decoder",
        )


def _check_tokenizer(recipe: Recipe, where: str) -> None:
    """Check the tokenizer and the initial model."""
    tokenizer, training = recipe.tokenizer, recipe.training
    if tokenizer.kind == "bpe" and tokenizer.size is None:
        raise UserError(
            "tokenizer.kind is bpe, but tokenizer.size is missing", where=where, remedy="Set size, e.g. 300"
        )
    if tokenizer.kind == "whisper" and not (tokenizer.model or recipe.student.encoder.model):
        raise UserError(
            "tokenizer.kind is whisper, but tokenizer.model is missing",
            where=where,
            remedy="Set tokenizer.model: whisper-base",
        )
    if tokenizer.kind == "init" and not (training.init or training.warm_start):
        raise UserError(
            "tokenizer.kind is init, but there is no initial model",
            where=where,
            remedy="Set training.init or training.warm_start, or choose another kind",
        )
    if tokenizer.kind == "teacher":
        choose("tokenizer.teacher", tokenizer.teacher, tuple(recipe.teachers), where)
    if training.init and training.warm_start:
        raise UserError(
            "training.init and training.warm_start are both set", where=where, remedy="Remove one of them"
        )
    if training.init_parts and not (training.init or training.warm_start):
        raise UserError(
            "training.init_parts is set, but there is no initial model",
            where=where,
            remedy="Set training.init or training.warm_start, or remove init_parts",
        )
    for name in training.allow:
        choose("training.allow", name, ("new_output",), where)


def _check_shares(recipe: Recipe, where: str) -> None:
    """Check the entries of `data.train`, and the sum of their shares."""
    for index, entry in enumerate(recipe.data.train):
        _check_entry(f"data.train[{index}]", entry, where)
    shares = [share for share in recipe.data.train_shares if share is not None]
    spoken, total = recipe.data.spoken, sum(shares)
    if not shares:
        return
    if spoken.voices and spoken.transcripts:
        raise UserError(
            "data.train has shares, but data.spoken.transcripts replaces the recordings",
            where=where,
            remedy="Set data.spoken.transcripts: false, or remove the shares",
        )
    others = len(shares) < len(recipe.data.train) or bool(spoken.voices and spoken.sentences)
    if others and not total < 1.0 - 1e-6:
        raise UserError(
            f"the shares of data.train sum to {total:g}, which leaves nothing for the data without a share",
            where=where,
            remedy="Choose shares that sum to less than 1",
        )
    if not others and abs(total - 1.0) > 1e-3:
        raise UserError(
            f"the shares of data.train sum to {total:g}",
            where=where,
            remedy="Choose shares that sum to 1, or remove the share of one entry",
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
        raise UserError(f"{key}.share is {share}", where=where, remedy="Choose a number above 0, at most 1")


def _check_tests(recipe: Recipe, where: str) -> None:
    """Check that the entries of `data.test` differ in the last two parts of their paths, which name the scores."""
    names = [Path(each).parts[-2:] for each in recipe.data.test]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"the scores of two entries of data.test would have the same name, {'/'.join(twice)}",
            where=where,
            remedy="Remove a duplicate entry, or rename the folder of one",
        )


def _check_data(recipe: Recipe, where: str) -> None:
    """Check data, augmentation, batches and acoustic scales."""
    _check_shares(recipe, where)
    _check_tests(recipe, where)
    speeds, spoken = recipe.augment.speeds, recipe.data.spoken
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise changes the audio in every epoch, but features.storage is disk",
            where=where,
            remedy="Set features.storage: online",
        )
    if len(set(speeds)) < len(speeds) or not speeds:
        raise UserError(f"augment.speeds is {speeds}", where=where, remedy="Give one or more different speeds")
    pairs = {f"data.spoken.{name}": getattr(spoken, name) for name in ("words", "rate", "pitch", "snr", "speed")}
    pairs["augment.noise_snr"] = recipe.augment.noise_snr
    pairs["batches, minimum_seconds and maximum_seconds,"] = [
        recipe.batches.minimum_seconds,
        recipe.batches.maximum_seconds,
    ]
    for key, values in pairs.items():
        if values[0] > values[1]:
            raise UserError(f"{key} is {list(values)}", where=where, remedy="Give the lower number first")
    if spoken.sentences and not spoken.voices:
        raise UserError(
            "data.spoken.sentences is set, but data.spoken.voices is 0",
            where=where,
            remedy="Set data.spoken.voices, e.g. 16",
        )
    if not recipe.hybrid.acoustic_scales:
        raise UserError(
            f"hybrid.acoustic_scales is {list(recipe.hybrid.acoustic_scales)}",
            where=where,
            remedy="Give one or more numbers above 0",
        )
