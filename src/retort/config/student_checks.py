"""Checks of a student's values against each other, and against features and tokenizer."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.config.student import DecoderConfig, EncoderConfig, StudentConfig, TransducerConfig


def check_student(recipe: Recipe, where: str) -> None:
    """Check the student against itself, features and tokenizer.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    student = recipe.student
    _check_kind(student, where)
    _check_fires(student, where)
    _check_window(student, where)
    _check_spare(student, where)
    if student.faithful and student.encoder.positions != "relative":
        raise UserError(
            f"student.faithful is true, but student.encoder.positions is {student.encoder.positions}",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    _check_speech(recipe, where)
    _check_whisper(recipe, where)
    _check_decoder(recipe, where)
    _check_stored_layers(recipe, where)
    check_sizes(student, where)


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
    if student.decoder.output == "plm" or student.decoder.init:
        raise UserError(
            f"student.decoder.output: plm and init need a CIF student, but student.kind is {kind}",
            where=where,
            remedy="Remove output and init",
        )
    if student.decoder.kind != "autoregressive":
        raise UserError(
            f"student.decoder.kind is {student.decoder.kind}, but student.kind is {kind}",
            where=where,
            remedy="Remove it: only a CIF student has other kinds of decoders",
        )
    if kind == "ctc" and not student.ctc_weight > 0.0:
        raise UserError(
            f"student.ctc_weight is {student.ctc_weight:g}, but CTC is the only loss of a ctc student",
            where=where,
            remedy="Set ctc_weight: 1.0",
        )
    if kind == "transducer":
        _check_transducer(student.transducer, where)


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


def _check_window(student: StudentConfig, where: str) -> None:
    """Check the decoder's attention to a window of frames."""
    window = student.decoder.window
    if window < 0:
        raise UserError(
            f"student.decoder.window is {window}",
            where=where,
            remedy="Give a number of frames, 0 for no attention",
        )
    if window == 0:
        return
    for key, other in (
        ("student.kind", None if student.kind == "cif" else student.kind),
        ("student.decoder.kind", None if student.decoder.kind in ("autoregressive", "whisper") else student.decoder.kind),
        ("student.faithful", "true" if student.faithful else None),
    ):
        if other is not None:
            raise UserError(
                f"student.decoder.window is {window}, but {key} is {other}",
                where=where,
                remedy="Set window: 0: it needs student.kind: cif, faithful: false, and an autoregressive or whisper "
                "decoder",
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
    if not 0 <= stored <= encoder.layers:
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


def _check_transducer(transducer: TransducerConfig, where: str) -> None:
    if transducer.monotonic and transducer.symbols > 1:
        raise UserError(
            f"student.transducer.symbols is {transducer.symbols}, but monotonic allows one token per frame",
            where=where,
            remedy="Remove symbols",
        )


def _check_speech(recipe: Recipe, where: str) -> None:
    """Check a pretrained encoder against features and augmentation."""
    encoder, features = recipe.student.encoder, recipe.features
    if (encoder.kind == "pretrained") != (features.kind != "fbank"):
        raise UserError(
            f"student.encoder.kind is {encoder.kind}, features.kind is {features.kind}",
            where=where,
            remedy="A pretrained encoder requires wave, whisper, w2v_bert or parakeet, other encoders fbank",
        )
    if encoder.kind != "pretrained":
        if encoder.model:
            raise UserError(
                f"student.encoder.model is set, but student.encoder.kind is {encoder.kind}",
                where=where,
                remedy="Set student.encoder.kind: pretrained",
            )
        return
    size = features.sampling_rate // 100
    of_waves = {
        "features.bins": (features.bins, size, f"Set {size}, the number of samples in 10 ms"),
        "augment.frequency_masks": (recipe.augment.frequency_masks, 0, "Set 0: a wave has no frequency bins"),
        "student.encoder.layers": (encoder.layers, 1, "Set 1: the whole model counts as one layer"),
    }
    of_others = {
        "features.cmvn": (features.cmvn, False, "Set false: these features are normalised already"),
        "features.sampling_rate": (features.sampling_rate, 16000, "Set 16000: these models support no other rate"),
    }
    wanted = {
        **(of_waves if features.kind == "wave" else of_others),
        "features.storage": (features.storage, "online", "Set online: only fbank features are stored"),
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
    if not encoder.model and not encoder.architecture:
        raise UserError(
            "student.encoder.kind is pretrained, but student.encoder.model is missing",
            where=where,
            remedy="Set a model, such as facebook/hubert-base-ls960",
        )


def _check_whisper(recipe: Recipe, where: str) -> None:
    """Check Whisper decoders, Whisper's tokenizer, and the padding of Whisper's features."""
    if recipe.student.has_whisper_decoder:
        owner = "student.kind" if recipe.student.kind == "whisper" else "student.decoder.kind"
        for key, value, allowed in (
            ("student.encoder.kind", recipe.student.encoder.kind, ("pretrained",)),
            ("features.kind", recipe.features.kind, ("whisper",)),
            ("tokenizer.kind", recipe.tokenizer.kind, ("whisper", "init")),
        ):
            if value not in allowed:
                raise UserError(
                    f"{key} is {value}, but {owner} is whisper", where=where, remedy=f"Set {key}: {allowed[0]}"
                )
    if recipe.tokenizer.kind == "whisper" and not (recipe.tokenizer.model or recipe.student.encoder.model):
        raise UserError(
            "tokenizer.kind is whisper, but tokenizer.model is missing",
            where=where,
            remedy="Set tokenizer.model: whisper-base",
        )
    pad = recipe.features.pad_seconds
    if pad < 0.0 or (pad and recipe.features.kind != "whisper"):
        raise UserError(
            f"features.pad_seconds is {pad:g}, features.kind is {recipe.features.kind}",
            where=where,
            remedy="Choose 0, or with features.kind: whisper a number above 0",
        )


def _check_decoder(recipe: Recipe, where: str) -> None:
    decoder = recipe.student.decoder
    if decoder.kind == "parallel":
        _check_parallel(decoder, where)
    if decoder.output == "plm" and recipe.tokenizer.kind != "teacher":
        raise UserError(
            f"student.decoder.output is plm, but tokenizer.kind is {recipe.tokenizer.kind}",
            where=where,
            remedy="Set tokenizer.kind: teacher, and tokenizer.teacher",
        )
    if (decoder.output == "plm") != (decoder.output_dim is not None):
        raise UserError(
            f"student.decoder.output is {decoder.output}, output_dim is {decoder.output_dim}",
            where=where,
            remedy="Set output_dim, the width of the PLM's embeddings, for plm only",
        )
    if decoder.init_layers and len(decoder.init_layers) != decoder.layers:
        raise UserError(
            f"student.decoder.init_layers has {len(decoder.init_layers)} numbers, student.decoder.layers is "
            f"{decoder.layers}",
            where=where,
            remedy="Give one number per layer, or none",
        )


def _check_parallel(decoder: DecoderConfig, where: str) -> None:
    for key, given in (
        ("history_dropout", decoder.history_dropout != 0.0),
        ("init", bool(decoder.init)),
        ("output: plm", decoder.output == "plm"),
    ):
        if given:
            raise UserError(
                f"student.decoder has {key}, but kind is parallel, which supports neither a history nor a PLM",
                where=where,
                remedy="Remove it, or set kind: autoregressive",
            )


def check_sizes(student: StudentConfig, where: str) -> None:
    """Check sizes, by themselves and against each other.

    Raises:
        UserError: names the key, its value and the permitted values.
    """
    encoder = student.encoder
    for key, part in (("encoder", encoder), ("decoder", student.decoder)):
        if part is encoder and encoder.kind in ("tdnnf", "zipformer", "pretrained"):
            continue
        if part.dim % part.heads or (part.dim // part.heads) % 2:
            raise UserError(
                f"student.{key}.dim is {part.dim}, {key}.heads is {part.heads}",
                where=where,
                remedy="dim must be a multiple of 2 x heads",
            )
    kernels = {
        "encoder.kernel": encoder.kernel,
        "encoder.cgmlp_kernel": encoder.cgmlp_kernel,
        "encoder.merge_kernel": encoder.merge_kernel,
        "cif.kernel": student.cif.kernel,
    }
    for key, kernel in kernels.items():
        if kernel % 2 == 0:
            raise UserError(f"student.{key} is {kernel}", where=where, remedy="Choose an odd number")
    if encoder.cgmlp % 2:
        raise UserError(
            f"student.encoder.cgmlp is {encoder.cgmlp}", where=where, remedy="Choose an even number"
        )
    pooled = encoder.pool_after
    if len(set(pooled)) < len(pooled) or not all(1 <= layer <= encoder.layers for layer in pooled):
        raise UserError(
            f"student.encoder.pool_after is {list(pooled)}",
            where=where,
            remedy=f"Give different layers from 1 to {encoder.layers}",
        )
    if encoder.bottleneck > 2 * encoder.dim and encoder.kind == "tdnnf":
        raise UserError(
            f"student.encoder.bottleneck is {encoder.bottleneck}",
            where=where,
            remedy=f"Choose from 1 to {2 * encoder.dim}, twice the dim",
        )
    if not encoder.dilations:
        raise UserError(
            f"student.encoder.dilations is {list(encoder.dilations)}",
            where=where,
            remedy="Give one or more numbers from 1 on; the last one is used for all further layers",
        )
    if encoder.kind == "zipformer":
        _check_zipformer(encoder, where)


def _check_zipformer(encoder: EncoderConfig, where: str) -> None:
    sizes = vars(encoder.zipformer)
    for name, values in sizes.items():
        key = f"student.encoder.zipformer.{name}"
        stacks = values if isinstance(values, list) else [values]
        if isinstance(values, list) and len(values) != encoder.layers:
            raise UserError(
                f"{key} has {len(values)} numbers, student.encoder.layers is {encoder.layers}",
                where=where,
                remedy="Give one number per stack, and set student.encoder.layers to the number of stacks",
            )
        step = {"dims": 4, "feedforward": 4, "table_dim": 2}.get(name, 1)
        least = 0 if name == "straight_steps" else 1
        if not stacks or min(stacks) < least or any(each % step for each in stacks):
            remedy = f"Choose numbers from {least} on" if step == 1 else f"Choose multiples of {step}"
            raise UserError(f"{key} is {values}", where=where, remedy=remedy)
    if any(kernel % 2 == 0 for kernel in encoder.zipformer.kernels):
        kernels = encoder.zipformer.kernels
        raise UserError(
            f"student.encoder.zipformer.kernels is {kernels}", where=where, remedy="Choose odd numbers"
        )
    if encoder.dim != max(encoder.zipformer.dims):
        raise UserError(
            f"student.encoder.dim is {encoder.dim}, the largest of student.encoder.zipformer.dims is "
            f"{max(encoder.zipformer.dims)}",
            where=where,
            remedy=f"Set student.encoder.dim: {max(encoder.zipformer.dims)}",
        )
