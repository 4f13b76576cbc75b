"""Conversion of a CTranslate2 Whisper model to a folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.pretrained.ctranslate2 import Whisper, read_whisper

SECONDS = 30
"""Duration of the input of a Whisper model in seconds."""
_TIMESTAMPS = [f"<|{step / 50:.2f}|>" for step in range(SECONDS * 50 + 1)]
_NEEDED = tuple(
    f"<|{name}|>"
    for name in ("endoftext", "startoftranscript", "startofprev", "notimestamps", "transcribe", "translate")
)
_MULTILINGUAL = 51865
"""Minimum vocabulary size of multilingual Whisper models."""
_MAXIMUM_INITIAL_TIMESTAMP = 50


def write_whisper_folder(source: Path, out: Path) -> None:
    """Convert a CTranslate2 folder (`model.bin`, `config.json`, `tokenizer.json`) to one of transformers.

    Args:
        out: an existing folder; the function writes `model.safetensors` (float16 or float32, as in the source),
            `config.json`, `generation_config.json`, `preprocessor_config.json`, `tokenizer.json`,
            `tokenizer_config.json`.

    Raises:
        UserError: a file is missing or damaged, or the model is not a Whisper in float16 or float32.
    """
    from safetensors.numpy import save_file

    whisper = read_whisper(source / "model.bin")
    settings = _read_json(source / "config.json")
    tokenizer = _read_json(source / "tokenizer.json")
    ids = _special_ids(tokenizer, whisper.sizes["vocab_size"], source / "tokenizer.json")
    for name, content in (
        ("config.json", _config(whisper, ids, settings)),
        ("generation_config.json", _generation_config(whisper, ids, settings)),
        ("preprocessor_config.json", _preprocessor(whisper.sizes["num_mel_bins"])),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", _tokenizer_config(ids)),
    ):
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    save_file(whisper.tensors, out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors creates files with mode 600


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=path) from None
    except ValueError as error:
        raise UserError(f"it is not JSON: {error}", where=path) from None
    if not isinstance(content, dict):
        raise UserError("it is not a JSON object", where=path)
    return content


def _special_ids(tokenizer: dict[str, Any], vocabulary: int, path: Path) -> dict[str, int]:
    """Special tokens by text, in the order of their ids; missing timestamps are added to the tokenizer."""
    try:
        added = sorted(tokenizer["added_tokens"], key=lambda token: int(token["id"]))
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except (KeyError, TypeError, ValueError):
        raise UserError("its added_tokens cannot be read", where=path) from None
    if lost := [name for name in _NEEDED if name not in ids]:
        raise UserError(f"it is the tokenizer of another model: it has no {lost[0]}", where=path)
    first = ids["<|notimestamps|>"] + 1
    if first + len(_TIMESTAMPS) != vocabulary:
        raise UserError(
            f"the tokenizer has {first + len(_TIMESTAMPS)} tokens, the model {vocabulary}", where=path
        )
    for number, name in enumerate(_TIMESTAMPS):
        if name not in ids:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            tokenizer["added_tokens"].append({"id": first + number, "content": name, **flags})
    return {name: number for name, number in ids.items() if number < first}


def _shared_ids(ids: dict[str, int], settings: dict[str, Any]) -> dict[str, Any]:
    end = ids["<|endoftext|>"]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "suppress_tokens": _numbers(settings.get("suppress_ids")),
        "begin_suppress_tokens": _numbers(settings.get("suppress_ids_begin")) or [220, end],
    }


def _numbers(value: Any) -> list[int] | None:
    return [int(each) for each in value] if isinstance(value, list) else None


def _config(whisper: Whisper, ids: dict[str, int], settings: dict[str, Any]) -> dict[str, Any]:
    dtype = str(whisper.tensors["model.encoder.conv1.weight"].dtype)
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dtype": dtype,
        **whisper.sizes,
        **_shared_ids(ids, settings),
    }


def _generation_config(whisper: Whisper, ids: dict[str, int], settings: dict[str, Any]) -> dict[str, Any]:
    multilingual = whisper.sizes["vocab_size"] >= _MULTILINGUAL
    found = {
        **_shared_ids(ids, settings),
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": _MAXIMUM_INITIAL_TIMESTAMP,
        "max_length": whisper.sizes["max_target_positions"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
    }
    if heads := settings.get("alignment_heads"):
        found["alignment_heads"] = heads
    if multilingual:
        first, after = ids["<|startoftranscript|>"], min(ids["<|translate|>"], ids["<|transcribe|>"])
        found["lang_to_id"] = {name: number for name, number in ids.items() if first < number < after}
        found["task_to_id"] = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    return found


def _preprocessor(bins: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": bins,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": SECONDS,
        "n_samples": SECONDS * 16000,
        "nb_max_frames": SECONDS * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 1024,
        "additional_special_tokens": list(ids),
        **special,
    }
