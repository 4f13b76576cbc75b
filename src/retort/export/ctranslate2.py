"""Whisper in the format of CTranslate2, as faster-whisper reads it; `retort.pretrained.ctranslate2` reads it back."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retort.common.files import write_whole
from retort.common.json_reader import parse_json
from retort.decoding.recogniser import Recogniser
from retort.export.whisper import WhisperExport, gather_whisper
from retort.pretrained.ctranslate2 import SPECIFICATION, VERSION

REVISION = 3
"""Version of the specification of Whisper models."""
_TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
_GELU = 3
_SECONDS, _RATE, _HOP, _WINDOW = 30, 16000, 160, 400

Arrays = dict[str, NDArray[Any]]


def export_ctranslate2(recogniser: Recogniser, base: str, out: Path, *, half: bool = False) -> WhisperExport:
    """Write a folder that faster-whisper opens: `model.bin`, `config.json`, `vocabulary.json`, `tokenizer.json`,
    `preprocessor_config.json`.

    Args:
        base: name or folder of the Whisper model that the student was initialised with.
        out: created if missing.
        half: weights in float16 instead of float32.

    Raises:
        UserError: as :func:`retort.export.whisper.gather_whisper`.
    """
    found = gather_whisper(recogniser, base)
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.float16 if half else np.float32
    arrays = whisper_variables({name: each.numpy() for name, each in found.tensors.items()}, found.architecture)
    arrays = {name: each.astype(dtype) if each.dtype == np.float32 else each for name, each in arrays.items()}
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    temporary = out / "model.bin.part"
    with temporary.open("wb") as file:
        write_variables(file, SPECIFICATION, REVISION, arrays, aliases)
    temporary.replace(out / "model.bin")
    size = found.architecture["vocab_size"]
    for name, content in (
        ("config.json", _settings(found)),
        ("vocabulary.json", _vocabulary(found, size)),
        ("tokenizer.json", parse_json(found.tokenizer.to_str())),
        ("preprocessor_config.json", _preprocessor(found.architecture["num_mel_bins"])),
    ):
        write_whole(out / name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return found


def whisper_variables(tensors: Mapping[str, NDArray[Any]], architecture: Mapping[str, Any]) -> Arrays:
    """CTranslate2's variables of a Whisper model.

    Args:
        tensors: under `transformers`' names.
        architecture: numbers of layers and heads.
    """
    found: Arrays = {}

    def joined(target: str, *sources: str) -> None:
        """Concatenate linear layers; one without a bias (keys) gets a bias of zeros."""
        weights = [tensors[f"{source}.weight"] for source in sources]
        biases = [
            tensors.get(f"{source}.bias", np.zeros(len(weight), np.float32))
            for source, weight in zip(sources, weights)
        ]
        found[f"{target}/weight"], found[f"{target}/bias"] = np.concatenate(weights), np.concatenate(biases)

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = tensors[f"{source}.weight"], tensors[f"{source}.bias"]

    for part in ("encoder", "decoder"):
        for number in range(architecture[f"{part}_layers"]):
            target, source = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
            own = f"{source}.self_attn"
            joined(f"{target}/self_attention/linear_0", f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
            joined(f"{target}/self_attention/linear_1", f"{own}.out_proj")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if part == "decoder":
                own = f"{source}.encoder_attn"
                joined(f"{target}/attention/linear_0", f"{own}.q_proj")
                joined(f"{target}/attention/linear_1", f"{own}.k_proj", f"{own}.v_proj")
                joined(f"{target}/attention/linear_2", f"{own}.out_proj")
                norm(f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            joined(f"{target}/ffn/linear_0", f"{source}.fc1")
            joined(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        found[f"{part}/position_encodings/encodings"] = tensors[f"model.{part}.embed_positions.weight"]
        found[f"{part}/num_heads"] = np.array(architecture[f"{part}_attention_heads"], np.int16)
    for name in ("conv1", "conv2"):
        joined(f"encoder/{name}", f"model.encoder.{name}")
    found["decoder/embeddings/weight"] = tensors["model.decoder.embed_tokens.weight"]
    flags = {"pre_norm": 1, "activation": _GELU, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    flags |= dict.fromkeys(("alibi", "alibi_use_positive_positions", "scale_alibi"), 0)
    found |= {f"decoder/{name}": np.array(value, np.int8) for name, value in flags.items()}
    found |= {"decoder/alignment_layer": np.array(-1, np.int16), "decoder/alignment_heads": np.array(1, np.int16)}
    return dict(sorted(found.items()))


def write_variables(
    file: BinaryIO, specification: str, revision: int, arrays: Mapping[str, NDArray[Any]], aliases: Mapping[str, str]
) -> None:
    """Write a `model.bin`.

    Args:
        arrays: by name; float32, float16, int8, int16 or int32.
        aliases: another name of an array, and the array's name.
    """
    file.write(struct.pack("<I", VERSION) + _text(specification))
    file.write(struct.pack("<II", revision, len(arrays)))
    for name, array in arrays.items():
        kind, little = _TYPES[array.dtype.name], array.astype(array.dtype.newbyteorder("<"), copy=False)
        file.write(_text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape))
        file.write(struct.pack("<BI", kind, array.nbytes))
        file.write(np.ascontiguousarray(little).tobytes())
    file.write(struct.pack("<I", len(aliases)))
    for alias, name in aliases.items():
        file.write(_text(alias) + _text(name))


def _text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def _settings(found: WhisperExport) -> dict[str, Any]:
    names = ((found.tokenizer.id_to_token(each), each) for each in range(found.architecture["vocab_size"]))
    start = int(found.tokenizer.token_to_id("<|startoftranscript|>") or 0)
    tasks = [found.tokenizer.token_to_id(f"<|{name}|>") for name in ("translate", "transcribe")]
    end = min(each for each in (*tasks, found.architecture["vocab_size"]) if each is not None)
    return {
        "suppress_ids": found.suppressed,
        "suppress_ids_begin": found.begin_suppressed,
        "lang_ids": [each for name, each in names if name and start < each < end],
        "alignment_heads": found.architecture["alignment_heads"],
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }


def _vocabulary(found: WhisperExport, size: int) -> list[str]:
    """The names of all ids; timestamps that the tokenizer lacks follow its tokens."""
    known = found.tokenizer.get_vocab_size(with_added_tokens=True)
    names = [found.tokenizer.id_to_token(each) for each in range(min(size, known))]
    first = next(
        (each for each, name in enumerate(names) if name == "<|notimestamps|>"), len(names) - 1
    ) + 1
    return [
        name if name is not None else f"<|{(each - first) * 0.02:.2f}|>"
        for each, name in enumerate([*names, *[None] * (size - len(names))])
    ]


def _preprocessor(bins: int) -> dict[str, int]:
    return {
        "feature_size": bins,
        "sampling_rate": _RATE,
        "hop_length": _HOP,
        "n_fft": _WINDOW,
        "chunk_length": _SECONDS,
    }
