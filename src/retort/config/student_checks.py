"""What may not stand beside what in a recipe's student: its kind, encoder and decoder."""

from __future__ import annotations

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.config.student import DecoderConfig, EncoderConfig, StudentConfig, TransducerConfig


def check_student(recipe: Recipe, where: str) -> None:
    """The student, and what it needs of features and tokenizer.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    student = recipe.student
    _check_kind(student, where)
    _check_fires(student, where)
    _check_window(student, where)
    _check_spare(student, where)
    if student.faithful and student.encoder.positions != "relative":
        raise UserError(
            "student.faithful needs the reference's positions",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    _check_speech(recipe, where)
    _check_whisper(recipe, where)
    _check_decoder(recipe, where)
    _check_stored_layers(recipe, where)
    check_sizes(student, where)


def _check_kind(student: StudentConfig, where: str) -> None:
    """What students without fired embeddings have nothing of."""
    kind = student.kind
    if kind not in ("ctc", "attention", "transducer", "whisper"):
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
    if student.decoder.kind != "autoregressive":
        raise UserError(
            f"student.decoder.kind is {student.decoder.kind}, but student.kind is {kind}",
            where=where,
            remedy="Leave it out: a decoder over fired embeddings alone says all tokens at once",
        )
    if kind == "ctc" and not student.ctc_weight > 0.0:
        raise UserError(
            f"student.ctc_weight is {student.ctc_weight:g}, of the only loss of a ctc student",
            where=where,
            remedy="Set ctc_weight: 1.0",
        )
    if kind == "transducer":
        _check_transducer(student.transducer, where)


def _check_fires(student: StudentConfig, where: str) -> None:
    """Fires at the peaks of the CTC head."""
    if student.kind != "cif" or student.cif.fires != "ctc":
        return
    if student.faithful:
        raise UserError(
            "student.cif.fires is ctc, but student.faithful restores the reference's accumulation",
            where=where,
            remedy="Set faithful: false, or fires: accumulate",
        )
    if not student.ctc_weight > 0.0:
        raise UserError(
            f"student.cif.fires is ctc, but student.ctc_weight is {student.ctc_weight:g}: the CTC head would not learn",
            where=where,
            remedy="Set ctc_weight: 0.5",
        )
    default = StudentConfig()
    for name in ("quantity_weight", "alignment_weight"):
        if (weight := getattr(student, name)) not in (0.0, getattr(default, name)):
            raise UserError(
                f"student.{name} is {weight:g}, but student.cif.fires is ctc: no CIF weights are estimated",
                where=where,
                remedy="Leave it out, or set fires: accumulate",
            )


def _check_window(student: StudentConfig, where: str) -> None:
    """Attention of the decoder to a window of frames."""
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
                remedy="Set window: 0: the autoregressive decoder of a CIF student that is not faithful alone has one",
            )


def _check_spare(student: StudentConfig, where: str) -> None:
    """Fires after the last one."""
    if student.cif.spare and not (student.kind == "cif" and student.decoder.kind == "whisper"):
        raise UserError(
            f"student.cif.spare is {student.cif.spare}, but student.decoder.kind is {student.decoder.kind}",
            where=where,
            remedy="Set spare: 0, or decoder.kind: whisper, which ends a sentence by itself",
        )


def _check_stored_layers(recipe: Recipe, where: str) -> None:
    """Frozen lower layers of the encoder whose outputs are stored."""
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
            remedy="Leave it out: a hybrid student learns from features",
        )
    if not (encoder.model or training.init or training.warm_start):
        raise UserError(
            f"training.stored_layers is {stored} without a model to start from: these layers would stay random",
            where=where,
            remedy="Set student.encoder.model, training.init or training.warm_start, or leave it out",
        )
    if recipe.augment.noise:
        raise UserError(
            "augment.noise changes the wave at each visit, but training.stored_layers stores what layers make of it",
            where=where,
            remedy="Leave one of them out",
        )
    for index, row in enumerate(recipe.distill):
        name, _, number = row.tap.partition(".")
        if name == "frames" and number.isdecimal() and int(number) < stored:
            raise UserError(
                f"distill[{index}].tap is {row.tap}, but training.stored_layers is {stored}: that layer does not learn",
                where=where,
                remedy=f"Choose frames.{stored} or a later layer",
            )


def _check_transducer(transducer: TransducerConfig, where: str) -> None:
    if transducer.monotonic and transducer.symbols > 1:
        raise UserError(
            f"student.transducer.symbols is {transducer.symbols}, but a monotonic transducer has one token a frame",
            where=where,
            remedy="Leave symbols out",
        )


def _check_speech(recipe: Recipe, where: str) -> None:
    """A pretrained encoder, and the wave that it hears."""
    encoder, features = recipe.student.encoder, recipe.features
    if (encoder.kind == "pretrained") != (features.kind != "fbank"):
        raise UserError(
            f"student.encoder.kind is {encoder.kind}, features.kind is {features.kind}",
            where=where,
            remedy="pretrained goes with wave, whisper, w2v_bert or parakeet, all other encoders with fbank",
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
    of_waves = {
        "features.bins": (features.bins, size, f"Set {size}, the samples of 10 ms"),
        "augment.frequency_masks": (recipe.augment.frequency_masks, 0, "Set 0: a wave has no bands"),
        "student.encoder.layers": (encoder.layers, 1, "Set 1: the whole model counts as one"),
    }
    of_others = {
        "features.cmvn": (features.cmvn, False, "Set false: these features are scaled already"),
        "features.sampling_rate": (features.sampling_rate, 16000, "Set 16000: these models read no other rate"),
    }
    wanted = {
        **(of_waves if features.kind == "wave" else of_others),
        "features.storage": (features.storage, "online", "Set online: only fbank features are stored"),
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


def _check_whisper(recipe: Recipe, where: str) -> None:
    """A Whisper student, and what is of Whisper's features and tokenizer only."""
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
            "tokenizer.kind is whisper without a model", where=where, remedy="Set tokenizer.model: whisper-base"
        )
    pad = recipe.features.pad_seconds
    if pad < 0.0 or (pad and recipe.features.kind != "whisper"):
        raise UserError(
            f"features.pad_seconds is {pad:g}, features.kind is {recipe.features.kind}",
            where=where,
            remedy="Give 0 or more, above 0 for whisper only",
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


def check_sizes(student: StudentConfig, where: str) -> None:
    """Sizes that cannot be, by themselves or beside another.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    encoder = student.encoder
    for key, part in (("encoder", encoder), ("decoder", student.decoder)):
        if part is encoder and encoder.kind in ("tdnnf", "zipformer", "pretrained"):
            continue
        if part.dim % part.heads or (part.dim // part.heads) % 2:
            raise UserError(
                f"student.{key}.dim {part.dim} over {part.heads} heads is not an even number",
                where=where,
                remedy="Choose dim a multiple of 2 x heads",
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
            remedy=f"Name different layers from 1 to {encoder.layers}",
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
            remedy="Name a number from 1 on for each layer; the last holds for the rest",
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
                remedy="Give one for each stack, and set student.encoder.layers to their number",
            )
        step = {"dims": 4, "feedforward": 4, "table_dim": 2}.get(name, 1)
        least = 0 if name == "straight_steps" else 1
        if not stacks or min(stacks) < least or any(each % step for each in stacks):
            remedy = f"Choose from {least} on" if step == 1 else f"Choose multiples of {step}"
            raise UserError(f"{key} is {values}", where=where, remedy=remedy)
    if any(kernel % 2 == 0 for kernel in encoder.zipformer.kernels):
        kernels = encoder.zipformer.kernels
        raise UserError(
            f"student.encoder.zipformer.kernels is {kernels}", where=where, remedy="Choose odd numbers"
        )
    if encoder.dim != max(encoder.zipformer.dims):
        raise UserError(
            f"student.encoder.dim is {encoder.dim}, the widest stack of student.encoder.zipformer.dims has "
            f"{max(encoder.zipformer.dims)}",
            where=where,
            remedy=f"Set student.encoder.dim: {max(encoder.zipformer.dims)}",
        )
