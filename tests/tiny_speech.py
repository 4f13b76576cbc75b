"""Speech encoders of Hugging Face's kinds with a few thousand random weights, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

KINDS = [
    ("wav2vec2", "group"), ("wav2vec2", "layer"), ("hubert", "group"), ("hubert", "layer"), ("wavlm", "group"),
    ("wavlm", "layer"), ("unispeech", "group"), ("unispeech-sat", "layer"),
]  # fmt: skip
DIM = 16
KERNELS, STRIDES = (10, 8, 4, 4), (5, 4, 4, 4)


def make_speech_encoder(
    folder: Path, kind: str = "wav2vec2", norm: str = "group", *, normalise: bool = True, **changed: Any
) -> Path:
    """A model that takes a step of 320 samples, in `folder`, with what its feature extractor says of itself."""
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    values: dict[str, Any] = {
        "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "conv_dim": (6, 6, 6, 6), "conv_kernel": KERNELS, "conv_stride": STRIDES, "num_feat_extract_layers": 4,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer", "vocab_size": 32, "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **(values | changed)))
        for name, parameter in model.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return folder


WHISPER = {
    "num_mel_bins": 80, "d_model": DIM, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "max_source_positions": 1500,
}  # fmt: skip


def tiny_whisper(**changed: Any) -> Any:
    """A WhisperModel whose biases and norms are not 0 and 1, which would hide mistakes."""
    from transformers import WhisperConfig, WhisperModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = WhisperConfig(
            **(WHISPER | changed), decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=60,
            pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=2,
        )  # fmt: skip
        model = WhisperModel(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_whisper(folder: Path, **changed: Any) -> Path:
    """That model in `folder`."""
    tiny_whisper(**changed).save_pretrained(folder)
    return folder


def whisper_settings(folder: Path | str, layers: int = 3) -> tuple[str, ...]:
    """Overrides of a recipe whose encoder is that model."""
    encoder = {"kind": "pretrained", "model": folder, "layers": layers, "dim": DIM, "pool_after": "[2]"}
    return (
        "features.kind=whisper",
        *(f"student.encoder.{key}={value}" for key, value in encoder.items()),
    )  # fmt: skip
