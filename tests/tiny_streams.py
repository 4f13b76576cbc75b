"""Tiny recognisers that were "trained" in chunks: random weights, in float64, of every kind that a stream supports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from retort.audio.fbank import FbankConfig
from retort.audio.whisper import WhisperFeatureConfig
from retort.config.schema import NormaliserConfig
from retort.config.student import EncoderConfig
from retort.decoding.recogniser import Recogniser
from retort.nn.conformer import ConformerConfig, TransformerConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.frontend import Conv2dConfig
from retort.nn.predictor import TransducerConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper_fired import FiredWhisperConfig
from retort.nn.zipformer import ZipformerConfig
from retort.students.cif import CifConfig
from retort.students.factory import build_student
from retort.text.tokenizers import EOS, CharacterTokenizer
from tiny_students import student_config

LEFT = 6
DIM = 16
WHISPER = {
    "model_type": "whisper", "num_mel_bins": 20, "d_model": DIM, "encoder_layers": 2, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "max_source_positions": 200, "decoder_layers": 2, "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32, "max_target_positions": 60, "vocab_size": 40, "prompt": 3, "alignment_heads": [[0, 1]],
}  # fmt: skip
SIZES: dict[str, Any] = {"layers": 2, "dim": DIM, "heads": 2, "feedforward": 32}
ENCODERS: dict[str, EncoderConfig] = {
    "rotary": ConformerConfig(**SIZES, kernel=5, positions="rotary", convolution_norm="batch"),
    "relative": ConformerConfig(**SIZES, kernel=5, positions="relative", convolution_norm="layer"),
    "transformer": TransformerConfig(**SIZES, positions="rotary"),
    "zipformer": ZipformerConfig(
        blocks=[1, 1], downsampling=[1, 2], dims=[12, DIM], heads=[2, 2], feedforward=[16, 16], kernels=[5, 3],
        query_dim=4, value_dim=4, position_dim=2, table_dim=8, straight_steps=0,
    ),
    "whisper": PretrainedEncoderConfig(architecture=WHISPER, layers=2, dim=DIM, dropout=0.0),
}  # fmt: skip
STUDENTS: dict[str, dict[str, Any]] = {
    "cif": {"kind": "cif"},
    "window": {"kind": "cif", "window": 3},
    "whisper_decoder": {"kind": "cif", "decoder": "whisper"},
    "whisper_window": {"kind": "cif", "decoder": "whisper", "window": 2},
    "ctc": {"kind": "ctc"},
    "transducer": {"kind": "transducer"},
}


def tiny_encoder_config(encoder: str) -> EncoderConfig:
    """A copy of a configuration, with pooling after the first layer."""
    return replace(ENCODERS[encoder], pool_after=[1], chunk=[2, 4, 0], left_context=[LEFT])


def tiny_stream_recogniser(encoder: str, student: str, seed: int = 0) -> Recogniser:
    """A recogniser of 20 bins that recognises something in noise; the end symbol is rarely the best."""
    given, kind = tiny_encoder_config(encoder), STUDENTS[student]
    whisper = given.kind == "pretrained"
    config = student_config(
        kind["kind"],
        frontend=Conv2dConfig(channels=4, layers=1),
        encoder=given,
        cif=CifConfig(spare=2 if kind.get("decoder") == "whisper" else 0),
        decoder=FiredWhisperConfig(window=kind.get("window", 0))
        if kind.get("decoder") == "whisper"
        else AutoregressiveConfig(layers=1, dim=DIM, heads=2, feedforward=32, window=kind.get("window", 0)),
        transducer=TransducerConfig(dim=DIM, joiner_dim=DIM, symbols=2),
        ctc_weight=0.0 if kind.get("decoder") == "whisper" else 0.5,
    )  # fmt: skip
    tokenizer = CharacterTokenizer(list("▁abcdefgh"))
    torch.manual_seed(seed)
    built = build_student(config, tokenizer.size, 20).double().eval()
    _vary(built)
    features = (WhisperFeatureConfig if whisper else FbankConfig)(bins=20, statistics="running")
    return Recogniser(built, tokenizer, features, NormaliserConfig(case="lower"))


@torch.no_grad()
def _vary(student: nn.Module) -> None:
    """Biases and norms begin at 0 and 1, which would hide mistakes; outputs of random weights are nearly constant."""
    for name, parameter in student.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        if name.endswith(
            ("decoder.vocabulary.weight", "embedding.weight", "ctc.weight", "joiner.output.weight")
        ):
            parameter.mul_(8.0)
            if "predictor" not in name:
                parameter[EOS] = 0.0
        if name.endswith(("weights.linear.weight", "fired.weight", "positions")):
            parameter.copy_(torch.randn_like(parameter))
        if name.endswith("weights.linear.bias"):
            parameter.zero_()
    for name, buffer in student.named_buffers():
        if name.endswith("positions"):
            buffer.copy_(torch.randn_like(buffer))
