"""Opens complete Whisper models: sizes, weights and tokenizer; every failure is a one-line error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.common.huggingface import open_model, open_part
from retort.config.schema import TokenizerConfig
from retort.pretrained.hub import load_pretrained, open_tokenizer
from retort.pretrained.speech import speech_architecture
from retort.text.whisper_pieces import WhisperTokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

_REMEDY = "Give the folder of a Whisper model or its name, such as whisper-base (see `retort fetch`)"
_DECODER = (
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "max_target_positions",
    "vocab_size",
)
_MULTILINGUAL = 51865
"""Minimum vocabulary size of multilingual Whisper models, if their configuration does not state it."""


def whisper_architecture(name: str) -> dict[str, Any]:
    """Description from which a Whisper can be rebuilt: sizes of encoder and decoder, prompt tokens, alignment heads.

    If the model has no alignment heads, all heads of the upper half of the decoder's layers are used.

    Raises:
        UserError: it cannot be found or opened, or is not a Whisper model.
    """
    values = speech_architecture(name)
    if values["model_type"] != "whisper":
        raise UserError(f"the type of the model is {values['model_type']}", where=name, remedy=_REMEDY)
    config, generation = _configs(name)
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    upper = [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]
    found = getattr(generation, "alignment_heads", None) or upper
    if any(not (0 <= layer < layers and 0 <= head < heads) for layer, head in found):
        raise UserError("its alignment_heads are not within its layers", where=name, remedy="Fetch the model again")
    return {
        **values,
        **{key: getattr(config, key) for key in _DECODER},
        "prompt": 4 if _multilingual(config, generation) else 2,
        "alignment_heads": [[int(layer), int(head)] for layer, head in found],
    }


def open_whisper(name: str) -> dict[str, Tensor]:
    """Weights of a Whisper, float32, with the names of `transformers`' WhisperModel.

    Raises:
        UserError: it cannot be found or opened, or lacks weights.
    """
    from transformers import WhisperModel

    weights: dict[str, Tensor] = _open(WhisperModel, name).state_dict()
    return weights


def open_whisper_model(name: str) -> PreTrainedModel:
    """Open a complete Whisper with its output layer, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: it cannot be found or opened, or lacks weights.
    """
    from transformers import WhisperForConditionalGeneration

    return _open(WhisperForConditionalGeneration, name).eval().requires_grad_(False)


def _open(kind: Any, name: str) -> PreTrainedModel:
    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return open_model(kind, source, local=local, dtype=torch.float32)

    with torch.random.fork_rng(devices=[]):
        model, report = load_pretrained(load, name, _REMEDY)
    absent = (*report["missing_keys"], *report["mismatched_keys"])
    missing = sorted(str(key) for key in absent if "proj_out" not in str(key))  # tied to the embeddings
    if missing:
        raise UserError(f"its weights lack {missing[0]}", where=name, remedy="Fetch the model again")
    return model


def whisper_tokenizer(
    name: str, config: TokenizerConfig, texts: Iterable[str], more_texts: Iterable[str] = ()
) -> WhisperTokenizer:
    """Create the vocabulary of a recipe from a Whisper's tokenizer and its list of suppressed tokens.

    Args:
        texts: normalised transcripts of the training data.
        more_texts: normalised sentences whose commonest pieces fill a vocabulary of `size`.

    Raises:
        UserError: no model is given, it cannot be opened, or language or size do not fit it.
    """
    if not name:
        raise UserError("tokenizer.kind is whisper without a model", remedy="Set tokenizer.model, e.g. whisper-base")
    settings, generation = _configs(name)
    language = config.language if _multilingual(settings, generation) else ""
    return WhisperTokenizer.train(
        texts,
        open_tokenizer(name).backend_tokenizer,
        language,
        config.size,
        getattr(generation, "suppress_tokens", None) or (),
        getattr(generation, "begin_suppress_tokens", None) or (),
        more_texts,
    )


def _configs(name: str) -> tuple[PretrainedConfig, GenerationConfig]:
    """The configurations of the model and of its generation, which may be empty."""
    from transformers import AutoConfig, GenerationConfig

    def load(source: str, local: bool) -> tuple[PretrainedConfig, GenerationConfig]:
        config = open_part(AutoConfig, source, local=local)
        try:
            return config, open_part(GenerationConfig, source, local=local)
        except OSError:
            return config, GenerationConfig()

    return load_pretrained(load, name, _REMEDY)


def _multilingual(config: PretrainedConfig, generation: GenerationConfig) -> bool:
    return bool(getattr(generation, "is_multilingual", config.vocab_size >= _MULTILINGUAL))
