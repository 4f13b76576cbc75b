"""CTC students on wav2vec 2.0 and related encoders as `transformers`' models with a CTC head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.huggingface import model_config
from retort.decoding.recogniser import Recogniser
from retort.nn.pretrained import SpeechFrontend, SpeechTransformer
from retort.students.ctc import CtcStudent
from retort.text.normalise import UNKNOWN_TEXT
from retort.text.tokenizers import BLANK, EOS, PAD, SPACE, SPECIAL, UNKNOWN, CharacterTokenizer, Tokenizer

_CLASSES = {
    "wav2vec2": "Wav2Vec2ForCTC",
    "hubert": "HubertForCTC",
    "wavlm": "WavLMForCTC",
    "unispeech": "UniSpeechForCTC",
    "unispeech-sat": "UniSpeechSatForCTC",
}
"""Class of `transformers` for each type of encoder."""
_NEVER = -1e4
"""Logit of ids that are never emitted."""
_NAMES = {BLANK: "<pad>", PAD: "<s>", EOS: "</s>", UNKNOWN: UNKNOWN_TEXT}
"""Names of the special ids; `transformers` calls the blank the padding."""


def is_wav2vec(recogniser: Recogniser) -> bool:
    """Whether the model is a CTC student on an encoder of the wave."""
    student = recogniser.student
    return isinstance(student, CtcStudent) and isinstance(student.encoder.frontend, SpeechFrontend)


def export_wav2vec(recogniser: Recogniser, out: Path, *, half: bool = False) -> int:
    """Write a folder that `transformers` opens: model, tokenizer, feature extractor.

    Args:
        recogniser: with a CTC student on an encoder of the wave.
        out: created if missing.
        half: weights in float16 instead of float32.

    Returns:
        the number of parameters.

    Raises:
        UserError: `transformers` has no such model; the error names what it could hold.
    """
    import transformers

    from retort.pretrained.hub import quiet

    student = recogniser.student
    assert isinstance(student, CtcStudent)
    frontend = student.encoder.frontend
    assert isinstance(frontend, SpeechFrontend)
    _check(student, recogniser.tokenizer)
    architecture: dict[str, Any] = getattr(student.config.encoder, "architecture")  # noqa: B009
    config = model_config(architecture)
    config.update(
        {"vocab_size": recogniser.tokenizer.size, "pad_token_id": BLANK, "bos_token_id": PAD, "eos_token_id": EOS}
    )
    kind = _CLASSES[architecture["model_type"]]
    config.architectures = [kind]
    with torch.random.fork_rng(devices=[]), quiet():
        model = getattr(transformers, kind)(config)
        own = dict(model.state_dict())
        base = model.base_model_prefix
        found = _tensors(student, base)
        missing = {name for name in own if name not in found and not name.endswith("masked_spec_embed")}
        assert not missing, missing
        assert found.keys() <= own.keys(), found.keys() - own.keys()
        model.load_state_dict(found, strict=False)
        (model.half() if half else model).save_pretrained(out)
    write_whole(out / "vocab.json", json.dumps(_vocabulary(recogniser.tokenizer), ensure_ascii=False, indent=1) + "\n")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(out / "vocab.json"),
        pad_token=_NAMES[BLANK],
        bos_token=_NAMES[PAD],
        eos_token=_NAMES[EOS],
        unk_token=UNKNOWN_TEXT,
        word_delimiter_token=SPACE,
    )
    tokenizer.save_pretrained(out)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=recogniser.sampling_rate,
        do_normalize=recogniser.features.cmvn,
        return_attention_mask=frontend.together,
    )
    extractor.save_pretrained(out)
    return sum(each.numel() for each in model.parameters())


def _check(student: CtcStudent, tokenizer: Tokenizer) -> None:
    if student.encoder.pool_after:
        raise UserError(
            f"student.encoder.pool_after is {sorted(student.encoder.pool_after)}, but transformers' models of this encoder "
            "have no pooling",
            remedy="Train with student.encoder.pool_after: [], or hand the model on with retort release",
        )
    if not isinstance(tokenizer, CharacterTokenizer):
        raise UserError(
            f"tokenizer.kind is {tokenizer.kind}, but transformers joins the tokens of these models as characters",
            remedy="Train with tokenizer.kind: characters, or hand the model on with retort release",
        )


@torch.no_grad()
def _tensors(student: CtcStudent, base: str) -> dict[str, Tensor]:
    """The weights under the names of `transformers`; ids that Retort never emits have a logit of -10,000."""
    frontend, (transformer,) = student.encoder.frontend, student.encoder.layers
    assert isinstance(frontend, SpeechFrontend)
    assert isinstance(transformer, SpeechTransformer)
    weight, bias = student.ctc.weight.detach().clone(), student.ctc.bias.detach().clone()
    for each in (PAD, EOS):
        weight[each], bias[each] = 0.0, _NEVER
    parts = {
        "feature_extractor": frontend.extractor,
        "feature_projection": frontend.projection,
        "encoder": transformer.model,
    }
    named = {
        f"{base}.{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in {**named, "lm_head.weight": weight, "lm_head.bias": bias}.items()
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    symbols = tokenizer.symbols[len(SPECIAL) :]
    return {_NAMES[each]: each for each in _NAMES} | {
        symbol: number for number, symbol in enumerate(symbols, start=len(SPECIAL))
    }
