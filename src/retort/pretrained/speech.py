"""Opens pretrained speech encoders; every failure is a one-line error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.common.huggingface import open_model, open_part
from retort.nn.conformer_encoders import CONFORMER_KINDS
from retort.nn.pretrained import KINDS as WAVE_KINDS
from retort.pretrained.hub import load_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PARAKEET = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
"""`model_type`s of complete recognisers, whose encoder is used."""
KINDS = (*WAVE_KINDS, "whisper", *CONFORMER_KINDS, *_PARAKEET)
"""Supported `model_type`s."""
FEATURES = {"whisper": "whisper", "wav2vec2-bert": "w2v_bert", "parakeet_encoder": "parakeet"}
"""`features.kind` by architecture; `wave` for others."""
_WHISPER = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
)
"""Keys of a Whisper configuration that describe the encoder."""
REMEDY = "Give the folder of a speech encoder or its Hugging Face name, such as facebook/hubert-base-ls960"
_PLAIN = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "add_adapter": False,
}
"""Settings that are disabled: masks that use numpy's generator (the recipe's `augment` has masks), layer drop,
which does not work with several processes, and adapters, which change the frame rate."""
_NOT_KEPT = ("architectures", "id2label", "label2id", "dtype", "torch_dtype", "transformers_version")


def speech_architecture(name: str) -> dict[str, Any]:
    """Description from which a speech encoder can be rebuilt: `model_type` and the non-default configuration values.

    Raises:
        UserError: it cannot be found or opened, or is of another kind.
    """
    from transformers import AutoConfig

    def load(source: str, local: bool) -> PretrainedConfig:
        return open_part(AutoConfig, source, local=local)

    config = load_pretrained(load, name, REMEDY)
    if config.model_type not in KINDS:
        raise UserError(
            f"the type of the model is {config.model_type}", where=name, remedy=f"Choose one of {', '.join(KINDS)}"
        )
    if config.model_type in _PARAKEET:
        config = config.encoder_config
    if getattr(config, "conv_pos_batch_norm", False):
        raise UserError(
            "its positions have a BatchNorm, whose statistics include padding", where=name, remedy="Choose another model"
        )
    if config.model_type == "whisper":
        return {"model_type": "whisper", **{key: getattr(config, key) for key in _WHISPER}}
    values = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_KEPT}
    if config.model_type == "parakeet_encoder":
        return {**values, "model_type": config.model_type}
    return {**values, **_PLAIN, "model_type": config.model_type}


def open_speech_encoder(name: str) -> PreTrainedModel:
    """Open a pretrained speech encoder, in float32 on the CPU; torch's generator is kept.

    Raises:
        UserError: as in :func:`speech_architecture`, or it lacks weights.
    """
    from transformers import AutoConfig, AutoModel

    values = speech_architecture(name)
    config = AutoConfig.for_model(values.pop("model_type"), **values)

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        return open_model(AutoModel, source, local=local, config=config, dtype=torch.float32)

    with torch.random.fork_rng(devices=[]):
        model, report = load_pretrained(load, name, REMEDY)
    _check_whole(report, name)
    return model


def open_whisper_encoder(name: str) -> dict[str, Tensor]:
    """Weights of a Whisper encoder, float32, with the names of `transformers`' WhisperEncoder.

    Raises:
        UserError: as in :func:`speech_architecture`, or it lacks weights.
    """
    from transformers import WhisperModel

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return open_model(WhisperModel, source, local=local, dtype=torch.float32)

    with torch.random.fork_rng(devices=[]):
        model, report = load_pretrained(load, name, REMEDY)
    missing = sorted(str(key) for key in report["missing_keys"] if "encoder." in str(key))
    if missing:
        raise UserError(f"its weights lack {missing[0]}", where=name, remedy="Fetch the model again")
    weights: dict[str, Tensor] = model.encoder.state_dict()
    return weights


def open_conformer_encoder(name: str) -> dict[str, Tensor]:
    """Weights of a w2v-BERT or Parakeet encoder, float32, with the names of `transformers`' encoder.

    Raises:
        UserError: as in :func:`speech_architecture`, or it lacks weights.
    """
    from transformers import AutoConfig, AutoModel, ParakeetEncoder

    architecture = speech_architecture(name)
    config = AutoConfig.for_model(**architecture)
    parakeet = architecture["model_type"] == "parakeet_encoder"
    # In a complete recogniser the encoder's weights have the prefix `encoder.`.
    mapping = {"key_mapping": {"^encoder\\.": ""}} if parakeet else {}

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        kind = ParakeetEncoder if parakeet else AutoModel
        return open_model(kind, source, local=local, config=config, dtype=torch.float32, **mapping)

    with torch.random.fork_rng(devices=[]):
        model, report = load_pretrained(load, name, REMEDY)
    _check_whole(report, name)
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def normalises_wave(name: str) -> bool | None:
    """Whether a speech encoder was trained on waves of zero mean and unit variance; None if this is unknown."""
    from transformers import Wav2Vec2FeatureExtractor

    def load(source: str, local: bool) -> dict[str, Any]:
        values, _ = Wav2Vec2FeatureExtractor.get_feature_extractor_dict(source, local_files_only=local)
        return dict(values)

    try:
        values = load_pretrained(load, name, REMEDY)
    except UserError:
        return None
    return bool(values.get("do_normalize", True))


def _check_whole(report: dict[str, Any], name: str) -> None:
    """
    Raises:
        UserError: weights are missing or have another shape; the vector of masked frames is not needed.
    """
    missing = sorted(
        str(key)
        for key in (*report["missing_keys"], *report["mismatched_keys"])
        if "masked_spec_embed" not in str(key)
    )
    if missing:
        raise UserError(f"its weights lack {missing[0]}", where=name, remedy="Fetch the model again")
