"""A fine-tuned Whisper under `transformers`' names, with the parts of its vocabulary that it was trained without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper import WhisperFrontend, WhisperLayer, named_encoder_weights
from retort.nn.whisper_decoder import named_decoder_weights
from retort.pretrained.whisper import open_whisper, whisper_architecture
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, SPECIAL
from retort.text.whisper_pieces import WhisperTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_SHARED = ("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_target_positions", "num_mel_bins")
"""Sizes that a fine-tuned model and its base have in common."""


@dataclass(frozen=True)
class WhisperExport:
    """A model in the form that all engines need.

    Attributes:
        tensors: float32, under the names of `transformers`' WhisperForConditionalGeneration without its output layer,
            which is that of the embeddings.
        architecture: sizes, as :func:`retort.pretrained.whisper.whisper_architecture` gives them, with this model's
            number of encoder layers.
        suppressed: Whisper's ids that decoding must not output: those of the student, and pieces outside its vocabulary.
        begin_suppressed: the same for the first token of a text.
        tokenizer: tokenizer of Whisper.
        language: language of the prompt; empty for an English-only model.
        padded: whether the model was trained with audio padded to 30 s, as other engines do.
    """

    tensors: dict[str, Tensor]
    architecture: dict[str, Any]
    suppressed: list[int]
    begin_suppressed: list[int]
    tokenizer: Backend
    language: str
    padded: bool


def gather_whisper(recogniser: Recogniser, base: str) -> WhisperExport:
    """The weights of a Whisper student; missing embeddings are taken from `base`.

    Args:
        base: name or folder of the Whisper model that the student was trained from.

    Raises:
        UserError: the recogniser is not a Whisper student, or `base` cannot be opened or has other sizes.
    """
    student, tokenizer = recogniser.student, recogniser.tokenizer
    if not isinstance(student, WhisperStudent) or not isinstance(tokenizer, WhisperTokenizer):
        nearest = {"cif": "--for onnx", "ctc": "--for sherpa-onnx", "transducer": "--for sherpa-onnx"}
        remedy = nearest.get(student.config.kind)
        raise UserError(
            f"a {student.config.kind} student is not a Whisper model",
            remedy=f"Export it with {remedy}" if remedy else "Export a model of student.kind: whisper",
        )
    encoder = student.config.encoder
    assert isinstance(encoder, PretrainedEncoderConfig)
    theirs = whisper_architecture(base)
    for key in _SHARED:
        if theirs[key] != encoder.architecture[key]:
            raise UserError(
                f"its {key} is {theirs[key]}, but that of the trained model is {encoder.architecture[key]}",
                where=base,
                remedy="Set the model that the training started from: --base",
            )
    embeddings = open_whisper(base)["decoder.embed_tokens.weight"]
    return WhisperExport(
        _tensors(student, tokenizer, embeddings),
        {**encoder.architecture, "vocab_size": len(embeddings), "encoder_layers": encoder.layers},
        _suppressed(tokenizer),
        sorted(tokenizer.whisper_begin_suppressed),
        tokenizer.backend,
        tokenizer.language,
        recogniser.features.pad_seconds >= 30.0,
    )


@torch.no_grad()
def _tensors(student: WhisperStudent, tokenizer: WhisperTokenizer, embeddings: Tensor) -> dict[str, Tensor]:
    frontend, norm = student.encoder.frontend, student.encoder.norm
    assert isinstance(frontend, WhisperFrontend)
    assert isinstance(norm, nn.LayerNorm)
    layers = [layer for layer in student.encoder.layers if isinstance(layer, WhisperLayer)]
    whole, own = embeddings.clone(), student.decoder.embedding.weight.cpu()
    rows = torch.tensor(tokenizer.pieces_of_whisper)
    whole[torch.tensor(tokenizer.prompt)] = student.decoder.prompt.cpu()
    for first, last in ((EOS, EOS + 1), (len(SPECIAL), len(rows))):  # the other special ids do not exist in Whisper
        whole[rows[first:last]] = own[first:last]
    parts: Mapping[str, Mapping[str, Tensor]] = {
        "encoder": named_encoder_weights(frontend, layers, norm),
        "decoder": {**named_decoder_weights(student.decoder), "embed_tokens.weight": whole},
    }
    return {
        f"model.{part}.{name}": tensor.detach().float().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }


def _suppressed(tokenizer: WhisperTokenizer) -> list[int]:
    """The tokenizer's suppressed ids, and the pieces that the vocabulary lacks."""
    ordinary = set(range(tokenizer.ordinary))
    return sorted({*tokenizer.whisper_suppressed, *(ordinary - set(tokenizer.pieces_of_whisper))})


def export_transformers(recogniser: Recogniser, base: str, out: Path, *, half: bool = False) -> WhisperExport:
    """Write a folder that `transformers` opens: model, generation settings, tokenizer, feature extractor.

    Args:
        base: as of :func:`gather_whisper`.
        out: made if missing.
        half: weights in float16 instead of float32.

    Raises:
        UserError: as :func:`gather_whisper`.
    """
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    from retort.common.huggingface import open_part
    from retort.pretrained.hub import find_model, open_tokenizer, quiet

    found = gather_whisper(recogniser, base)
    source = find_model(base)
    config = open_part(WhisperConfig, source, local=True)
    config.encoder_layers = found.architecture["encoder_layers"]
    with torch.random.fork_rng(devices=[]), quiet():
        model = WhisperForConditionalGeneration(config)
        report = model.load_state_dict(found.tensors, strict=False)
        assert not report.unexpected_keys, report.unexpected_keys
        model.tie_weights()
        try:
            generation = open_part(GenerationConfig, source, local=True)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
        generation.suppress_tokens = found.suppressed or None
        generation.begin_suppress_tokens = found.begin_suppressed or None
        generation.alignment_heads = found.architecture["alignment_heads"]
        if found.language:
            generation.language, generation.task = f"<|{found.language}|>", "transcribe"
        model.generation_config = generation
        (model.half() if half else model).save_pretrained(out)
        open_tokenizer(base).save_pretrained(out)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(out)
    return found
